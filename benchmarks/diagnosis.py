"""Whether a diagnosis holds: lower bounds against what ONNX Runtime measures, and where its own profile finds the time.

    python benchmarks/diagnosis.py [--quick] [--json FILE]

Peak and bandwidth of this machine are measured before each visit to the subnets, and the best of all counts, since what
else runs can only hide what the machine can do. Twenty random subnets of two spaces, of inverted residuals and of
bottlenecks, on one thread: the least of all runs of a subnet, in several visits, beside the bound that no run goes
below; the estimate with overhead; and Spearman's correlation over the stages of each between the estimate and the time
in ONNX Runtime's profile. Ten minutes on one core; --quick takes three subnets of each space.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import tyro
from report import report
from rich.progress import track
from scipy.stats import spearmanr

from compress.diagnosis import Diagnosis, diagnose
from compress.roofline import Roofline
from predictors import prepare, this_device
from predictors.measuring.runtimes import Timer, random_inputs
from predictors.roofline import measure_roofline
from supernet.artifacts.export import export_onnx
from supernet.families import FAMILIES, Family
from supernet.space import Arch

SPACES = ("ofa_mobilenet_v3", "ofa_resnet50")
HEAD = ("global_pool", "conv_head", "norm_head", "bn2", "act2", "flatten", "classifier", "fc")
VISITS, RUNS, PROFILED = 5, 10, 30


@dataclass(frozen=True)
class Arguments:
    subnets: int = 10
    """Subnets of each space."""
    quick: bool = False
    """Three subnets of each space."""
    seed: int = 0
    """Which subnets are drawn."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    device = this_device()
    drawn = list(subnets(3 if arguments.quick else arguments.subnets, arguments.seed))
    roofline = None
    least_ms = np.full(len(drawn), np.inf)
    profiles = []
    for visit in track(range(VISITS), "Measuring"):
        roofline = better(measure_roofline(device), roofline)
        for index, (_, family, arch) in enumerate(drawn):
            timer: Timer = prepare(family.build(arch), device, family.example(arch))
            least_ms[index] = min(least_ms[index], timer(RUNS).min())
            if visit == 0:
                profiles.append(stage_times(family, arch))
    rows = []
    for (space, family, arch), measured_ms, profile in zip(drawn, least_ms, profiles):
        found = diagnose(family.build(arch), family.example(arch), roofline, device.bits)
        stages = estimates(found)
        common = [stage for stage in stages if stage in profile]
        rows.append(
            {
                "space": space,
                "MACs (M)": found.macs / 1e6,
                "bound (ms)": found.bound_ms,
                "estimate (ms)": found.estimate_ms,
                "least measured (ms)": float(measured_ms),
                "bound / measured": float(found.bound_ms / measured_ms),
                "stages": len(common),
                "Spearman, stages": float(spearmanr([stages[s] for s in common], [profile[s] for s in common])[0]),
            }
        )
    part = np.array([row["bound / measured"] for row in rows])
    stage_correlation = np.array([row["Spearman, stages"] for row in rows])
    summary = {
        "subnets": len(rows),
        "bounds_above_measured": int((part > 1).sum()),
        "largest_bound_by_measured": float(part.max()),
        "mean_bound_by_measured": float(part.mean()),
        "spearman_estimate_measured": float(
            spearmanr([row["estimate (ms)"] for row in rows], [row["least measured (ms)"] for row in rows])[0]
        ),
        "mean_stage_spearman": float(stage_correlation.mean()),
        "least_stage_spearman": float(stage_correlation.min()),
        "peak_gmacs": roofline.peak_macs / 1e9,
        "memory_bandwidth_gb": roofline.memory_bandwidth / 1e9,
    }
    report(rows, summary, arguments.json, load_average=device.hardware["load_average"])


def subnets(count: int, seed: int) -> Iterator[tuple[str, Family, Arch]]:
    generator = np.random.default_rng(seed)
    for name in SPACES:
        family = FAMILIES[name]()
        yield from ((name, family, family.space.sample(generator)) for _ in range(count))


def better(first: Roofline, second: Roofline | None) -> Roofline:
    """The best that was found of each."""
    if second is None:
        return first
    rates = {size: max(rate, second.bandwidths[size]) for size, rate in first.bandwidths.items()}
    return Roofline(max(first.peak_macs, second.peak_macs), rates, min(first.overhead_ms, second.overhead_ms))


def estimates(found: Diagnosis) -> dict[str, float]:
    """Milliseconds of each stage as estimated."""
    stages: dict[str, float] = defaultdict(float)
    for layer in found.layers:
        stages[stage_of(layer.name)] += layer.estimate_ms
    return stages


def stage_times(family: Family, arch: Arch) -> dict[str, float]:
    """Milliseconds of each stage in ONNX Runtime's profile, of each node the least of all runs.

    What ONNX Runtime puts between layers has no name of theirs, and counts with the layer before it.
    """
    example = family.example(arch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        export_onnx(family.build(arch).eval(), path, example, names=None)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        feed = {each.name: t.numpy() for each, t in zip(session.get_inputs(), random_inputs(example, 1))}
        for _ in range(PROFILED):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["name"]] = min(event["dur"] / 1e3, times.get(event["name"], np.inf))
    stages: dict[str, float] = defaultdict(float)
    stage = ""
    for name, milliseconds in times.items():
        if scopes := name.split("/")[1:-1]:
            stage = stage_of(_dotted(scopes))
        stages[stage] += milliseconds
    return stages


def _dotted(scopes: list[str]) -> str:
    """The module of a node of torch's exporter, whose scopes of lists say their whole path: blocks, blocks.1, conv."""
    path: list[str] = []
    for scope in scopes:
        path = scope.split(".") if scope.split(".")[: len(path)] == path else [*path, scope]
    return ".".join(path)


def stage_of(layer: str) -> str:
    """`blocks.1` of `blocks.1.0.conv_pw`, `layer1` of `layer1.0.conv1`; what is before and after these is stem and
    head."""
    first, *rest = layer.split(".")
    if first == "blocks" and rest:
        return f"{first}.{rest[0]}"
    return first if first.startswith("layer") else "head" if first in HEAD else "stem"


if __name__ == "__main__":
    main()
