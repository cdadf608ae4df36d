"""A device: everything that a latency depends on beside the network, under one name."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from supernet.artifacts import provenance
from supernet.artifacts.atomic import write_atomically
from supernet.artifacts.reading import parse_json, read_json

ON_GPU = ("tensorrt", "cuda", "cuda_graph")  # runtimes
BITS = {"fp32": 32, "tf32": 32, "fp16": 16, "int8": 8, "int4": 4}  # of a number, by precision


@dataclass(frozen=True)
class Device:
    """Hardware, runtime, precision, threads and batch size together.

    `hardware` and `versions` say what is needed to repeat a measurement; they are empty where nobody knows.
    """

    name: str
    runtime: str  # a name in predictors.measuring.runtimes.RUNTIMES, or any for a device elsewhere
    precision: str = "fp32"
    threads: int = 1
    batch_size: int = 1  # images in one run; a latency is the time of the whole batch
    hardware: Mapping[str, str | int | float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f"a device's name is made of letters, digits, '-', '_' and '.', unlike {self.name!r}")
        if self.threads < 1 or self.batch_size < 1:
            raise ValueError(f"threads and batch_size are at least 1, not {self.threads} and {self.batch_size}")

    @property
    def bits(self) -> int:
        """Of a weight or an activation at the device's precision."""
        return BITS.get(self.precision, 32)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Device:
        """The device written in `text`; ValueError if it is no device or lacks a field."""
        try:
            return parse_json(text, cls)
        except ValueError as error:
            raise ValueError(f"no description of a device: {error}") from None

    @classmethod
    def load(cls, path: str | Path) -> Device:
        """The device in the file at `path`, as `save` writes it; ValueError, naming the file, if it is none."""
        return read_json(Path(path), cls, "description of a device")

    def save(self, path: str | Path) -> None:
        with write_atomically(path) as temporary:
            temporary.write_text(self.to_json() + "\n")


def this_device(
    runtime: str = "onnxruntime",
    precision: str = "fp32",
    threads: int = 1,
    batch_size: int = 1,
    name: str = "",
) -> Device:
    """This machine with the given runtime; `name` defaults to one like `epyc-7763-onnxruntime-fp32-1t-b1`."""
    hardware = _hardware(runtime)
    model = _short(str(hardware.get("gpu") or hardware["cpu"]))
    versions = provenance.versions()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions[runtime] = importlib.metadata.version(runtime)
    return Device(
        name or f"{model}-{runtime}-{precision}-{threads}t-b{batch_size}",
        runtime,
        precision,
        threads,
        batch_size,
        hardware,
        versions,
    )


def is_this_machine(device: Device) -> bool:
    """Whether this machine has the hardware of `device`, whatever its name; no if the hardware of `device` is
    unknown."""

    def lasting(hardware: Mapping[str, str | int | float]) -> dict[str, str | int | float]:
        return {name: value for name, value in hardware.items() if name not in ("load_average", "gpus")}

    return lasting(device.hardware) == lasting(_hardware(device.runtime))


def _hardware(runtime: str) -> dict[str, str | int | float]:
    hardware = provenance.processor() | (provenance.gpu() if runtime in ON_GPU else {})
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor.exists():
        hardware["governor"] = governor.read_text().strip()
    return hardware | {"load_average": round(os.getloadavg()[0], 2)}


def _short(name: str) -> str:
    """'Intel(R) Xeon(R) Gold 6226 CPU @ 2.70GHz' as 'xeon-gold-6226'."""
    name = re.sub(r"\(.*?\)|@.*|\b(intel|amd|nvidia|cpu|processor|\d+-core)\b", " ", name, flags=re.IGNORECASE)
    return "-".join(re.findall(r"[a-z0-9.]+", name.lower())) or "machine"
