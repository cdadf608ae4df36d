"""Fit a latency predictor to milliseconds measured anywhere.

    supernet fit-latency --run runs/mine --measurements manifest.csv --name my-phone
    supernet fit-latency --family ofa_mobilenet_v3 --measurements manifest.csv --name my-phone
    supernet fit-latency --family ofa_mobilenet_v3 --measurements ten.csv --name my-phone \\
        --sources runs/latency/xeon-onnxruntime-fp32-1t-b1
    supernet fit-latency --family ofa_mobilenet_v3 --suggest 10 --export-to onnx_files \\
        --sources runs/latency/xeon-onnxruntime-fp32-1t-b1

The CSV file has the columns arch (JSON) and latency_ms, such as manifest.csv of `supernet measure-latency
--export-only` once it is filled in. With predictors of other devices as sources ten measurements do; `--suggest 10`
exports the ten to measure, the smallest and the largest among them. Columns energy_mj and peak_memory_bytes, if the
file has these, get predictors of their own. Writes OUTPUT/NAME/device.json and predictor.json, in seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from predictors import Device, LatencyPredictor, family_costs, suggest
from predictors.measuring.manifest import export_subnets
from predictors.measuring.measurements import read_measurements
from predictors.quantities import FURTHER, LATENCY, NOUNS
from supernet.conditions import ABSENT, GIVEN, only_where
from supernet_cli.command_line import console, family_of
from supernet_cli.flags import parse_flags


@dataclass(frozen=True)
class Arguments:
    run: Path | None = None
    """Folder of a training run, whose space the subnets are of."""
    family: Annotated[str | None, tyro.conf.arg(aliases=["--space"])] = None
    """Instead of a run, a search space: one of supernet.families.FAMILIES, or code of your own, package.module:function
    or path/to/file.py:function; beside a run, its space said again, if that is code of your own."""
    space_options: Annotated[str, only_where(run=ABSENT)] = "{}"
    """Options of that space as a JSON object."""
    measurements: Annotated[Path | None, only_where(suggest=ABSENT)] = None
    """CSV file with the columns arch and latency_ms."""
    name: Annotated[str, only_where(suggest=ABSENT)] = ""
    """Name of the device: letters, digits, '-', '_' and '.'."""
    sources: tuple[Path, ...] = ()
    """Folders of predictors of other devices on the same space."""
    num_classes: Annotated[int, only_where(run=ABSENT)] = 1000
    """Classes of the classifier of a `family`; a run has its own."""
    runtime: Annotated[str, only_where(suggest=ABSENT)] = "unknown"
    """What ran the subnets, for the record."""
    precision: Annotated[str, only_where(suggest=ABSENT)] = "fp32"
    """Precision, for the record."""
    threads: Annotated[int, only_where(suggest=ABSENT)] = 1
    """Threads, for the record."""
    batch_size: int = 1
    """Images in one run."""
    output: Annotated[Path, only_where(suggest=ABSENT)] = Path("runs/latency")
    """Folder with one folder a device."""
    suggest: int | None = None
    """Fit nothing; export so many subnets that say most about a new device."""
    export_to: Annotated[Path, only_where(suggest=GIVEN)] = Path("onnx_files")
    """Where --suggest exports to."""


def main() -> None:
    arguments = parse_flags(Arguments, __doc__)
    family = family_of(arguments.run, arguments.family, arguments.space_options, arguments.num_classes)
    sources = [LatencyPredictor.load(directory, family.space) for directory in arguments.sources]
    sources += family_costs(family)
    if arguments.suggest is not None:
        export_subnets(
            family, suggest(family.space, arguments.suggest, sources), arguments.export_to, arguments.batch_size
        )
        console.print(f"{arguments.export_to}/manifest.csv lists the files; fill in its column latency_ms.")
        return
    if arguments.measurements is None:
        raise ValueError("say what to fit with --measurements FILE.csv, or what to measure with --suggest 10")
    device = Device(arguments.name, arguments.runtime, arguments.precision, arguments.threads, arguments.batch_size)
    rows = read_measurements(arguments.measurements, family.space)
    good = [row for row in rows if not row.reference and not row.error]
    directory = arguments.output / device.name
    for quantity in (LATENCY, *FURTHER):
        known = [row for row in good if not math.isnan(getattr(row, quantity))]
        if not known and quantity != LATENCY:
            continue
        archs, values = [row.arch for row in known], [getattr(row, quantity) for row in known]
        predictor = LatencyPredictor.fit(family.space, archs, values, sources, device, quantity=quantity)
        predictor.save(directory)
        console.print(
            f"{len(known)} measurements of the {NOUNS[quantity]}; expected error of a prediction "
            f"{predictor.error_percent:.2f} %."
        )
    device.save(directory / "device.json")
    console.print(f"All is in {directory}.")
