"""Predict the latency of architectures on a device.

    supernet predict-latency --list-devices
    supernet predict-latency --device xeon-onnxruntime-fp32-1t-b1 --arch '{"resolution": 224, ...}'
    supernet predict-latency --device xeon-onnxruntime-fp32-1t-b1 --archs archs.jsonl
    cat archs.jsonl | supernet predict-latency --device xeon-onnxruntime-fp32-1t-b1 --archs -

Prints one line of JSON an architecture: {"latency_ms": ..., "standard_error_ms": ..., "arch": {...}}, with "energy_mj"
and "peak_memory_bytes" where the device has predictors of these. A device is a folder in FOLDER, as supernet
measure-latency and supernet fit-latency write it. Seconds.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.table import Column, Table

from predictors import LatencyPredictor
from predictors.latency import FILE, file_of, load_devices
from predictors.quantities import FURTHER
from supernet.conditions import ABSENT, only_where
from supernet.space import Arch
from supernet_cli.command_line import console
from supernet_cli.flags import parse_flags


@dataclass(frozen=True)
class Arguments:
    device: Annotated[str | None, only_where(list_devices=ABSENT)] = None
    """Name of the device."""
    arch: Annotated[str | None, only_where(list_devices=ABSENT)] = None
    """One architecture as a JSON object."""
    archs: Annotated[str | None, only_where(list_devices=ABSENT)] = None
    """File of architectures, one JSON object a line, or - for standard input."""
    folder: Path = Path("runs/latency")
    """Folder with one folder a device."""
    list_devices: bool = False
    """List the devices and end."""


def main() -> None:
    arguments = parse_flags(Arguments, __doc__)
    if arguments.list_devices:
        print_devices(load_devices(arguments.folder))
        return
    if arguments.device is None:
        raise ValueError("name a device with --device; --list-devices lists them")
    if not (arguments.folder / arguments.device / FILE).is_file():
        there = sorted(path.parent.name for path in arguments.folder.glob(f"*/{FILE}"))
        raise ValueError(
            f"no device {arguments.device!r} in {arguments.folder}; there are {', '.join(there) or 'none'}"
        )
    directory = arguments.folder / arguments.device
    predictor = LatencyPredictor.load(directory)
    archs = [predictor.space.validate(arch) for arch in read_archs(arguments)]
    further = {
        quantity: LatencyPredictor.load(directory, predictor.space, quantity).cost(archs)
        for quantity in FURTHER
        if file_of(directory, quantity).is_file()
    }
    for index, (arch, latency, error) in enumerate(zip(archs, *predictor.predict(archs))):
        line: dict[str, object] = {
            "latency_ms": float(f"{latency:.6g}"),
            "standard_error_ms": float(f"{error:.3g}"),
            **{quantity: float(f"{values[index]:.6g}") for quantity, values in further.items()},
            "arch": dict(arch),
        }
        print(json.dumps(line))


def read_archs(arguments: Arguments) -> list[Arch]:
    if (arguments.arch is None) == (arguments.archs is None):
        raise ValueError("say which architectures: either --arch or --archs")
    if arguments.arch is not None:
        return [Arch.from_json(arguments.arch)]
    text = sys.stdin.read() if arguments.archs == "-" else Path(arguments.archs).read_text()
    return [Arch.from_json(line) for line in text.splitlines() if line.strip()]


def print_devices(predictors: dict[str, LatencyPredictor]) -> None:
    name = Column("device", no_wrap=True)
    table = Table(name, "runtime", "precision", "threads", "batch", "measured", "error (%)")
    for name, predictor in predictors.items():
        device = predictor.device
        about = [device.runtime, device.precision, device.threads, device.batch_size] if device else ["?"] * 4
        table.add_row(
            name,
            *map(str, about),
            str(len(predictor.codes)),
            f"{predictor.error_percent:.2f}",
        )
    console.print(table)
