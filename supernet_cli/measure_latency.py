"""Measure subnets on this machine and fit its latency predictor, and those of energy and peak memory.

    supernet measure-latency --run runs/mine
    supernet measure-latency --family ofa_mobilenet_v3 --subnets 200
    supernet measure-latency --family ofa_mobilenet_v3 --runtime onnxruntime --precision int8 --threads 2
    supernet measure-latency --family ofa_mobilenet_v3 --further energy_mj peak_memory_bytes
    supernet measure-latency --family ofa_mobilenet_v3 --noise-floor
    supernet measure-latency --family ofa_mobilenet_v3 --subnets 100 --export-only onnx_files

Writes OUTPUT/DEVICE/: device.json, measurements.csv (a row a subnet, as it goes) and predictor.json; the device's name
is made of the processor and the options. Started again, it goes on where it stopped. One to two seconds a subnet of
5 ms; let nothing else run meanwhile.

`--further energy_mj` needs counters of energy that may be read (RAPL of processors, NVML of GPUs with the extra
`energy`), and takes a third of a second more a subnet, three on a GPU; `--further peak_memory_bytes` takes seconds.
Their predictors are energy_mj.json and peak_memory_bytes.json beside predictor.json; a search knows the costs as
DEVICE:energy_mj and DEVICE:peak_memory_bytes.

A target that cannot run Python: `--export-only` writes ONNX files and manifest.csv; fill in its column latency_ms and
give it to supernet fit-latency.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.table import Table

from predictors import LatencyPredictor, MeasuringConfig, family_costs, measure, prepare, stratified, this_device
from predictors.device import Device
from predictors.measuring import energy, memory, runtimes
from predictors.measuring.manifest import export_subnets
from predictors.measuring.measure import FurtherCost
from predictors.measuring.measurements import Measurement, read_measurements
from predictors.measuring.noise import NOISE_SUBNETS, relative_differences
from predictors.quantities import ENERGY, LATENCY, NOUNS, PEAK_MEMORY
from predictors.regression.regressors import MINIMUM
from supernet.conditions import ABSENT, GIVEN, only_where
from supernet.families import Family
from supernet.space import Arch
from supernet_cli.command_line import console, fail, family_of, progress_bar
from supernet_cli.flags import parse_flags

ONE_PROCESS = (sys.executable, "-m", "supernet_cli", "measure-latency")  # this command anew


@dataclass(frozen=True)
class Arguments:
    run: Path | None = None
    """Folder of a training run, the subnets of whose space are measured."""
    family: Annotated[str | None, tyro.conf.arg(aliases=["--space"])] = None
    """Instead of a run, a search space: one of supernet.families.FAMILIES, or code of your own, package.module:function
    or path/to/file.py:function; beside a run, its space said again, if that is code of your own."""
    space_options: Annotated[str, only_where(run=ABSENT)] = "{}"
    """Options of that space as a JSON object."""
    subnets: int = 200
    """Number of subnets, half of them uniform, half spread over MACs."""
    largest_resolution: int | None = None
    """Only subnets for images of at most so many pixels a side."""
    num_classes: Annotated[int, only_where(run=ABSENT)] = 1000
    """Classes of the classifier of a `family`; a run has its own."""
    runtime: Annotated[str, only_where(export_only=ABSENT)] = "onnxruntime"
    """What runs the subnets: torch, torch_compile, onnxruntime, openvino, executorch, litert, tensorrt,
    cuda or cuda_graph."""
    precision: Annotated[str, only_where(export_only=ABSENT)] = "fp32"
    """fp32, int8 (onnxruntime) or tf32 (cuda, cuda_graph)."""
    threads: Annotated[int, only_where(export_only=ABSENT)] = 1
    """Threads of the runtime."""
    batch_size: int = 1
    """Examples in one run; the latency is that of the batch."""
    further: Annotated[tuple[Literal["energy_mj", "peak_memory_bytes"], ...], only_where(export_only=ABSENT)] = ()
    """Further costs to measure, and to fit a predictor of each: the energy of a run, and the most memory that is
    resident of a process that runs the subnet (allocated, on a GPU)."""
    name: Annotated[str, only_where(export_only=ABSENT)] = ""
    """Name of the device; by default made of the processor and the options."""
    output: Annotated[Path, only_where(export_only=ABSENT)] = Path("runs/latency")
    """Folder with one folder a device."""
    rounds: Annotated[int, only_where(export_only=ABSENT)] = MeasuringConfig.rounds
    """Visits to each subnet."""
    noise_floor: Annotated[bool, only_where(export_only=ABSENT)] = False
    """Measure 50 of the subnets twice, completely and independently, and print how much that differs."""
    noise_pass: Annotated[Literal[1, 2] | None, only_where(noise_floor=GIVEN)] = None
    """Only one of these two measurements; used by the command itself."""
    export_only: Path | None = None
    """Measure nothing; write the subnets as ONNX files and a manifest to this folder."""
    seed: int = 0
    """Which subnets are drawn, and the order of the measurements."""


def main() -> None:
    arguments = parse_flags(Arguments, __doc__)
    family = family_of(arguments.run, arguments.family, arguments.space_options, arguments.num_classes)
    space = family.space
    if arguments.largest_resolution is not None:
        sizes = space.choices["resolution"].values if "resolution" in space.choices else (family.input_size,)
        if None in sizes:
            raise ValueError("the inputs of this space have no resolution: leave out --largest-resolution")
        kept = [size for size in sizes if size <= arguments.largest_resolution]
        if not kept:
            raise ValueError(f"no resolution of at most {arguments.largest_resolution} pixels; there are {sizes}")
        if "resolution" in space.choices:
            space = space.restrict({"resolution": kept})
    archs = stratified(space, family.macs, arguments.subnets, np.random.default_rng(arguments.seed))
    if arguments.export_only is not None:
        with progress_bar() as progress:
            task = progress.add_task("Exporting", total=len(archs), note="")
            export_subnets(
                family,
                archs,
                arguments.export_only,
                arguments.batch_size,
                lambda done: progress.update(task, completed=done),
            )
        console.print(f"{arguments.export_only}/manifest.csv lists the files; fill in its column latency_ms.")
        return
    device = this_device(
        arguments.runtime, arguments.precision, arguments.threads, arguments.batch_size, arguments.name
    )
    try:
        runtimes.check(device)
    except ModuleNotFoundError as error:
        fail(str(error), 2)
    further = further_costs(family, device, arguments.further)
    directory = arguments.output / device.name
    claim(directory, device)
    if arguments.noise_floor:
        chosen = archs[:: max(len(archs) // NOISE_SUBNETS, 1)][:NOISE_SUBNETS]
        if arguments.noise_pass is not None:
            measured(
                family, device, chosen, directory / f"noise_{arguments.noise_pass}.csv", arguments, arguments.noise_pass
            )
            return
        for number in (1, 2):  # in a process each: torch is up to 1.6 times slower in one that has measured before
            done = subprocess.run([*ONE_PROCESS, *sys.argv[1:], "--noise-pass", str(number)])
            if done.returncode:
                sys.exit(done.returncode)
        report_noise(*(read_measurements(directory / f"noise_{number}.csv", family.space) for number in (1, 2)))
        return
    rows = measured(family, device, archs, directory / "measurements.csv", arguments, arguments.seed, further)
    good = [row for row in rows if not row.error]
    for row in rows:
        if row.error:
            console.print(f"failed: {row.arch.to_json()}: {row.error}", highlight=False, markup=False)
    if len(good) < MINIMUM:
        console.print(f"{len(good)} subnets are too few for a predictor, which needs {MINIMUM}.")
        return
    console.print(f"{len(good)} subnets measured, {len(rows) - len(good)} failed.")
    for quantity in (LATENCY, *arguments.further):
        values = [getattr(row, quantity) for row in good]
        predictor = LatencyPredictor.fit(
            family.space, [row.arch for row in good], values, family_costs(family), device, quantity=quantity
        )
        predictor.save(directory)
        console.print(f"Expected error of a prediction of the {NOUNS[quantity]}: {predictor.error_percent:.2f} %.")
    console.print(f"All is in {directory}.")


def further_costs(family: Family, device: Device, names: Sequence[str]) -> dict[str, FurtherCost]:
    """How the further costs of these names are measured; ValueError, or ModuleNotFoundError, for one that cannot be."""
    costs: dict[str, FurtherCost] = {}
    if ENERGY in names:
        meter = energy.meter(device)
        costs[ENERGY] = lambda arch, timer: energy.energy_mj(timer, meter)
    if PEAK_MEMORY in names:
        memory.check(device)
        costs[PEAK_MEMORY] = lambda arch, timer: memory.peak_memory_bytes(
            family.build(arch), device, family.example(arch)
        )
    return costs


def claim(directory: Path, device: Device) -> None:
    """Write device.json, or check that the one there describes the same device, if anything was measured on it."""
    path = directory / "device.json"
    if not path.exists() or not any(directory.glob("*.csv")):
        device.save(path)
        return
    there = Device.load(path)
    for what in ("runtime", "precision", "threads", "batch_size"):
        if getattr(there, what) != getattr(device, what):
            raise ValueError(
                f"{directory} holds measurements with {what} {getattr(there, what)}, not {getattr(device, what)}; "
                "give this device another --name"
            )


def measured(
    family: Family,
    device: Device,
    archs: list[Arch],
    path: Path,
    arguments: Arguments,
    seed: int,
    further: Mapping[str, FurtherCost] | None = None,
) -> list[Measurement]:
    if path.exists():
        read_measurements(path, family.space)  # an error if they are of another family

    def prepared(arch: Arch):
        return prepare(family.build(arch), device, family.example(arch))

    with progress_bar() as progress:
        task = progress.add_task(f"Measuring on {device.name}", total=len(archs), note="")
        return measure(
            archs,
            prepared,
            path,
            MeasuringConfig(rounds=arguments.rounds),
            seed,
            lambda done, total: progress.update(task, completed=done, total=total),
            further,
        )


def report_noise(first: list[Measurement], second: list[Measurement]) -> None:
    differences = relative_differences(first, second)
    table = Table("", "relative difference of two measurements (%)")
    table.add_row("mean: the noise floor", f"{100 * np.abs(differences).mean():.2f}")
    table.add_row("median", f"{100 * np.median(np.abs(differences)):.2f}")
    table.add_row("largest", f"{100 * np.abs(differences).max():.2f}")
    table.add_row("common to all subnets", f"{100 * math.fabs(np.median(differences)):.2f}")
    console.print(table)
