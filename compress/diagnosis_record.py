"""A diagnosis as a file that a report reads, and as a picture: the roofline with the layers as points."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from compress.advice import Advice
from compress.diagnosis import BANDWIDTH, COMPUTE, OVERHEAD, Diagnosis
from supernet.artifacts.atomic import write_atomically, write_json
from supernet.artifacts.formats import DIAGNOSIS, UnknownFormat
from supernet.artifacts.reading import parse_json, typed

FILE, PICTURE = "diagnosis.json", "roofline.svg"
COLOURS = {COMPUTE: "#0072b2", BANDWIDTH: "#d55e00", OVERHEAD: "#999999"}
MARKS = {COMPUTE: "o", BANDWIDTH: "s", OVERHEAD: "x"}


class Layer(TypedDict):
    """A layer in the record: `compress.diagnosis.Layer`."""

    name: str
    macs: float
    intensity: float
    compute_ms: float
    transfer_ms: float
    overhead_ms: float
    bound_by: str


class Change(TypedDict):
    """What a change would bring: `compress.advice.Advice`."""

    change: str
    reason: str
    estimate_ms: float
    activation_bytes: float
    stored_bytes: float


class Record(TypedDict):
    """What `record` writes and readers rely on."""

    network: str
    device: str
    bits: int
    bottlenecks: list[str]
    shares: dict[str, float]
    limits: dict[str, float]
    exceeded: dict[str, float]
    macs: float
    bound_ms: float
    estimate_ms: float
    activation_bytes: float
    stored_bytes: float
    peak_layers: list[str]
    peak_macs: float
    bandwidths: dict[str, float]
    layers: list[Layer]
    advice: list[Change]


def record(diagnosis: Diagnosis, advice: Sequence[Advice], network: str, device: str) -> dict[str, Any]:
    """The diagnosis of `network` on `device`, and what follows from it, as JSON."""
    return {
        "format": DIAGNOSIS.label,
        "network": network,
        "device": device,
        "bits": diagnosis.bits,
        "bottlenecks": list(diagnosis.bottlenecks),
        "shares": diagnosis.shares,
        "limits": dict(diagnosis.limits),
        "exceeded": diagnosis.exceeded,
        "macs": diagnosis.macs,
        "bound_ms": diagnosis.bound_ms,
        "estimate_ms": diagnosis.estimate_ms,
        "activation_bytes": diagnosis.activation_bytes,
        "eager_activation_bytes": diagnosis.eager_activation_bytes,
        "stored_bytes": diagnosis.stored_bytes,
        "peak_layers": list(diagnosis.peak_layers),
        "peak_macs": diagnosis.roofline.peak_macs,
        "bandwidths": dict(diagnosis.roofline.bandwidths),
        "layers": [
            {**dataclasses.asdict(layer), "intensity": layer.intensity, "bound_by": layer.bound_by}
            for layer in diagnosis.layers
        ],
        "advice": [dataclasses.asdict(row) for row in advice],
    }


def write_record(folder: Path, content: Mapping[str, Any]) -> None:
    write_json(folder / FILE, content, indent=1)


def read_record(folder: Path) -> dict[str, Any]:
    """The record in `folder`; ValueError if it is none or damaged."""
    path = folder / FILE
    try:
        content = parse_json(path.read_bytes(), dict)
        return typed(Record, DIAGNOSIS.upgraded(content, content.get("format"), path))
    except UnknownFormat:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no diagnosis, or damaged ({error}): delete it and diagnose again") from None


def plot_roofline(path: Path, content: Mapping[str, Any]) -> None:
    """Write an SVG of a `record`: what the device attains at most at each intensity, and where each layer is on it.

    A layer's height is what it attains at most: floating-point operations by the time that it takes at least, with
    overhead. Layers without any are left out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    layers = [layer for layer in content["layers"] if layer["macs"]]
    peak = 2 * content["peak_macs"] / 1e9
    rates = [rate / 1e9 for _, rate in sorted(content["bandwidths"].items(), key=lambda item: int(item[0]))]
    intensities = [layer["intensity"] for layer in layers] or [1.0]
    span = np.geomspace(min(*intensities, 0.5), max(*intensities, 4 * peak / rates[-1]), 200)
    for rate, style, name in ((max(rates), "--", "nearest cache"), (rates[-1], "-", "memory")):
        axes.plot(span, np.minimum(peak, rate * span), style, color="black", lw=1, label=f"{name}: {rate:.3g} GB/s")
    for bound, colour in COLOURS.items():
        own = [layer for layer in layers if layer["bound_by"] == bound]
        heights = [
            2e-6 * layer["macs"] / (max(layer["compute_ms"], layer["transfer_ms"]) + layer["overhead_ms"])
            for layer in own
        ]
        if own:
            x = [layer["intensity"] for layer in own]
            axes.plot(x, heights, MARKS[bound], color=colour, alpha=0.7, label=f"{len(own)} layers bound by {bound}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("floating-point operations for each byte moved")
    axes.set_ylabel("GFLOP/s at most")
    axes.set_title(f"{content['network']} on {content['device']}".replace("$", r"\$"), fontsize=10)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
