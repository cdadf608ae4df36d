"""What weight sharing costs in training: a sandwich step of the supernet against the plain models it contains.

    python benchmarks/train_step.py [--quick] [--json FILE] [--device cuda --precision bf16 --resolutions 224]

A step trains the largest subnet on labels and two random ones and the smallest on its logits, with new random subnets
every step. The floor is the same four plain timm models, built beforehand, each forward and backward on the same batch
with the same losses, nothing shared. Both are timed in turn, in one process, the optimizer left out of both. Reported
are the ratio of each pair of steps (median and quartiles), and the peak memory of a step over that of the largest
plain model's own: `peak_memory_ratio` of what is in use, `peak_process_ratio` of what the process takes, with what
glibc's heap keeps between tensors of ever new sizes. Ten minutes on 2 cores; --quick takes one.

On a GPU the same four models are also CUDA graphs, the floor where launches cost nothing (`graph_floor_ratio`), and
`gpu_busy` is the part of a step in which kernels run. `--ways` executes the supernet's steps in several ways, on the
same subnets in turn. A new shape costs far more the first time than ever after: `--known 3` runs the subnets of each
step three times before the runs that count, of which graphs need two; `runs` in the file has the milliseconds of all of
them, in their order. The file is written whenever a step is done, so that it is there if time runs out.
"""

from __future__ import annotations

import gc
import itertools
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from compared_steps import GraphFloor, Precision, Step, Way, train_plain
from report import report, save
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from supernet.families import FAMILIES
from supernet.training.pieces.graphs import GraphedPieces

ON_GPU = ("graph_floor_ratio", "gpu_busy", "synchronisations_a_step", "peak_gib", "graphs_gib")
"""Of a row, what is a headline figure on a GPU."""
GLIBC_THRESHOLDS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


@dataclass(frozen=True)
class Arguments:
    space: str = "ofa_mobilenet_v3"
    """Search space."""
    resolutions: tuple[int, ...] = (64, 160)
    """Pixels a side."""
    batch_sizes: tuple[int, ...] = (32, 8)
    """Images a step, one for each resolution."""
    steps: int = 15
    """Pairs of steps that are timed."""
    known: int = 0
    """Runs of each step's subnets before those that count."""
    repeats: int = 1
    """Runs of each step's subnets that count, by their median."""
    ways: tuple[Way, ...] = ("eager",)
    """How the supernet's steps are executed: eager, graphs, compile, or several of them."""
    growth: bool = True
    """Also time a step by the number of random subnets."""
    device: str = "cpu"
    """cpu or cuda."""
    precision: Precision = "fp32"
    """Of the forward pass."""
    quick: bool = False
    """Fewer steps, one resolution."""
    json: Path | None = None
    """File for the result."""
    memory_of: Literal["supernet", "plain"] | None = None
    """Only print the peak memory of a step in MiB; used by the benchmark itself."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if len(arguments.resolutions) != len(arguments.batch_sizes):
        sys.exit("error: give one of --batch-sizes for each of --resolutions")
    if arguments.memory_of:
        print(peak_memory_here(arguments))
        return
    settings = list(zip(arguments.resolutions, arguments.batch_sizes))[: 1 if arguments.quick else None]
    results: list[list[dict[str, object]]] = []
    details = {"space": arguments.space, "threads": torch.get_num_threads(), "precision": arguments.precision}
    if arguments.device == "cuda":
        details["gpu"] = torch.cuda.get_device_name()
    details |= {"runs": {}, "kernels": {}}
    for resolution, batch_size in settings:
        results.append([])
        for rows in compare(arguments, resolution, batch_size, details["runs"], details["kernels"]):
            results[-1] = rows
            save(*tabled(arguments, results), arguments.json, **details)
        if arguments.device == "cpu":
            for row in results[-1]:
                row["peak_memory_ratio"] = memory_ratio(arguments, row, heap=False)
                row["peak_process_ratio"] = memory_ratio(arguments, row, heap=True)
    if arguments.growth and not arguments.quick:
        details["growth"] = growth(arguments, *settings[0])
        details["growth_with_size"] = growth_with_size(arguments, *settings[0])
    report(*tabled(arguments, results), arguments.json, **details)


def tabled(
    arguments: Arguments, results: Sequence[Sequence[dict[str, object]]]
) -> tuple[list[dict[str, object]], dict[str, float]]:
    """The rows of all resolutions so far, and the figures that they come down to, by the way if it is not eager."""
    rows, summary = list(itertools.chain(*results)), {}
    for row in rows:
        suffix = f"{row['resolution']}"
        if arguments.device == "cuda":
            suffix += f"_{row['batch_size']}_{arguments.precision}"
        if row["way"] != "eager":
            suffix += f"_{row['way']}"
        summary[f"overhead_ratio_{suffix}"] = row["ratio"]
        for name in ("images_per_second", *ON_GPU):
            if arguments.device == "cuda" and name in row:
                summary[f"{name}_{suffix}"] = row[name]
    if found := [row["peak_memory_ratio"] for row in rows if "peak_memory_ratio" in row]:
        summary["peak_memory_ratio"] = max(found)
    return rows, summary


def _step(arguments: Arguments, resolution: int, batch_size: int, **options: float) -> Step:
    return Step(
        arguments.space,
        resolution,
        batch_size,
        device=arguments.device,
        precision=arguments.precision,
        ways=arguments.ways,
        **options,
    )


def compare(
    arguments: Arguments,
    resolution: int,
    batch_size: int,
    runs_ms: dict[str, list[list[float]]],
    kernels: dict[str, list[dict[str, object]]],
) -> Iterator[list[dict[str, object]]]:
    """A row for each way, ever again as more is known. Plain steps and those of each way run in turn, each time another
    one first. `runs_ms` gets the milliseconds of every run, step by step, and `kernels` the longest kernels of a step,
    by what ran."""
    step = _step(arguments, resolution, batch_size)
    steps = 7 if arguments.quick else arguments.steps
    names = ["plain", *arguments.ways]
    counted: dict[str, list[float]] = {name: [] for name in names}
    has_floor = True
    for index in range(-2, steps):  # two to warm up
        learners = step.learners(index % 1000)
        models = step.plain_models(learners)
        gc.collect()
        runs = {way: partial(step.shared, learners, way) for way in arguments.ways}
        runs["plain"] = partial(train_plain, models, *step.batch, arguments.precision)
        first = index % len(names)
        order = [*names[first:], *names[:first]]
        seconds = {name: [] for name in order}
        for _, name in itertools.product(range(arguments.known + arguments.repeats), order):
            seconds[name].append(step.seconds(runs[name]))
        if step.device.type == "cuda" and index >= 0 and has_floor:
            try:
                graphs = GraphFloor(models, *step.batch, arguments.precision)
                seconds["floor"] = [step.seconds(graphs) for _ in range(1 + arguments.repeats)]
            except RuntimeError as error:  # of memory, say, with which the steps themselves remain
                print(f"there is no graph floor: {error}")
                has_floor = False
                counted.pop("floor", None)
        for name, found in seconds.items():
            runs_ms.setdefault(f"{name}_{resolution}_{batch_size}", []).append([1e3 * s for s in found])
            if index >= 0:
                counted.setdefault(name, []).append(float(np.median(found[-arguments.repeats :])))
        if index >= 0:
            rows = [row_of(way, resolution, batch_size, counted) for way in arguments.ways]
            yield rows
    if step.device.type == "cuda":
        for row in rows:
            for found in on_gpu(step, row, steps, arguments.precision):
                row |= found
                yield rows
            kernels[f"{row['way']}_{resolution}_{batch_size}"] = longest = kernels_of(step, row["way"], steps)
            row["kernel_ms"] = sum(kernel["ms"] for kernel in longest)
            row["gpu_busy"] = row["kernel_ms"] / row["supernet_ms"]
            row["kernels_a_step"] = sum(kernel["times"] for kernel in longest)
            del longest[20:]
            yield rows


def row_of(way: Way, resolution: int, batch_size: int, counted: dict[str, list[float]]) -> dict[str, object]:
    """Of the seconds of each step, by what ran."""
    quartiles = np.quantile(np.divide(counted[way], counted["plain"]), [0.25, 0.5, 0.75])
    row = {
        "resolution": resolution,
        "batch_size": batch_size,
        "way": way,
        "supernet_ms": float(np.median(counted[way])) * 1e3,
        "plain_ms": float(np.median(counted["plain"])) * 1e3,
        "ratio": float(quartiles[1]),
        "ratio_quartile_1": float(quartiles[0]),
        "ratio_quartile_3": float(quartiles[2]),
        "images_per_second": batch_size / float(np.median(counted[way])),
        "steps": len(counted[way]),
    }
    if "floor" in counted:
        row["graph_floor_ms"] = float(np.median(counted["floor"])) * 1e3
        row["graph_floor_ratio"] = float(np.median(np.divide(counted[way], counted["floor"])))
    return row


def on_gpu(step: Step, row: dict[str, object], steps: int, precision: Precision) -> Iterator[dict[str, object]]:
    """What else a GPU shows of a way, one after the other."""
    way = row["way"]
    yield gpu_memory(step, way, steps, precision)
    yield {"gradient_difference": gradient_difference(step, way)}
    if isinstance(pieces := step.stand_ins[way], GraphedPieces):
        yield {"graphs_recorded": pieces.recorded, "graphs_gib": pieces.held_bytes / 2**30}
    yield {"synchronisations_a_step": synchronisations(partial(step.shared, step.learners(0), way))}


def gradient_difference(step: Step, way: Way) -> float:
    """The largest difference of a gradient from that of an eager step, as a part of the largest value of its tensor;
    of eager steps themselves what comes from sums in another order."""
    learners, found = step.learners(0), []
    for each in ("eager", way):
        step.shared(learners, each)
        found.append([parameter.grad.clone() for parameter in step.net.parameters() if parameter.grad is not None])
    parts = [(b - a).abs().max() / a.abs().max().clamp_min(1e-30) for a, b in zip(*found, strict=True)]
    return float(torch.stack(parts).max())


def synchronisations(run: Callable[[], None]) -> int:
    """How often a run waits for the GPU, as torch notices it."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in found)


def kernels_of(step: Step, way: Way, steps: int) -> list[dict[str, object]]:
    """Milliseconds and calls of each kernel in a step whose shapes are known, on average, the longest first. The
    profiler slows launches for the rest of the process."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for index in range(steps):
            step.shared(step.learners(index), way)
        torch.cuda.synchronize()
    kernels: dict[str, dict[str, object]] = {}
    for event in found.events():
        if event.device_type == DeviceType.CUDA:
            kernel = kernels.setdefault(event.name, {"kernel": event.name[:120], "ms": 0.0, "times": 0.0})
            kernel["ms"] += event.time_range.elapsed_us() / steps / 1e3
            kernel["times"] += 1 / steps
    return sorted(kernels.values(), key=lambda kernel: -kernel["ms"])


def gpu_memory(step: Step, way: Way, steps: int, precision: Precision) -> dict[str, float]:
    """Peak memory of steps whose shapes are known over that of the largest plain model's, each with its own weights and
    gradients, but for what both have in common; without the memory of CUDA graphs, which is `graphs_gib`."""
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for index in range(steps):
        step.shared(step.learners(index), way)
    weights = sum(tensor.nbytes for tensor in step.net.state_dict().values())
    peak = torch.cuda.max_memory_allocated()
    shared = peak - held + weights
    step.net.zero_grad()
    model = step.net.extract(step.net.space.largest)
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        train_plain([model], *step.batch, precision)
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    ratio = shared / (torch.cuda.max_memory_allocated() - held + weights)
    return {"peak_memory_ratio": ratio, "peak_gib": peak / 2**30, "reserved_gib": torch.cuda.memory_reserved() / 2**30}


def memory_ratio(arguments: Arguments, row: dict[str, object], heap: bool) -> float:
    """Peak memory of a supernet step over that of the largest plain model's, each in a process of its own.

    Without `heap` glibc hands memory that is freed back at once, so that what is in use is measured, and not what its
    heap keeps between tensors of ever new sizes.
    """
    environment = os.environ if heap else os.environ | dict.fromkeys(GLIBC_THRESHOLDS, "100000")
    peaks = []
    for what in ("supernet", "plain"):
        command = [sys.executable, __file__, "--memory-of", what, "--space", arguments.space]
        command += ["--resolutions", str(row["resolution"]), "--batch-sizes", str(row["batch_size"])]
        command += ["--precision", arguments.precision, "--steps", str(arguments.steps), "--ways", row["way"]]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        peaks.append(float(done.stdout.split()[-1]))
    return peaks[0] / peaks[1]


def peak_memory_here(arguments: Arguments) -> float:
    """Peak memory in MiB that steps take, weights and gradients included, beyond what the process had before there was
    a network."""
    (resolution,), (batch_size,) = arguments.resolutions, arguments.batch_sizes
    images = torch.randn(batch_size, 3, resolution, resolution).to(memory_format=torch.channels_last)
    labels = torch.zeros(batch_size, dtype=torch.int64)
    gc.collect()
    before = _peak_mib()
    if arguments.memory_of == "plain":
        family = FAMILIES[arguments.space]()
        model = family.build(family.space.largest).train().to(memory_format=torch.channels_last)
        for _ in range(5):
            train_plain([model], images, labels, arguments.precision)
    else:
        step = _step(arguments, resolution, batch_size)
        for index in range(arguments.steps):
            step.shared(step.learners(index), *arguments.ways)
    return _peak_mib() - before


def _peak_mib() -> float:
    """The most memory that this process has had so far."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def growth(arguments: Arguments, resolution: int, batch_size: int) -> list[dict[str, float]]:
    """Seconds a step by the number of random subnets."""
    rows = []
    for random_subnets in (1, 2, 4, 8):
        step = _step(arguments, resolution, batch_size, random_subnets=random_subnets)
        times = [step.seconds(lambda s=step, i=i: s.shared(s.learners(i), *arguments.ways[:1])) for i in range(8)][1:]
        rows.append({"random_subnets": random_subnets, "step_ms": float(np.median(times)) * 1e3})
    return rows


def growth_with_size(arguments: Arguments, resolution: int, batch_size: int) -> list[dict[str, float]]:
    """Seconds a step by the size of the supernet, all its widths scaled."""
    rows = []
    for width_mult in (0.5, 0.75, 1.0, 1.5, 2.0):
        step = _step(arguments, resolution, batch_size, width_mult=width_mult)
        times, macs = [], []
        for index in range(8):
            learners = step.learners(index)
            times.append(step.seconds(partial(step.shared, learners, *arguments.ways[:1])))
            macs.append(sum(step.family.macs(learner.arch) for learner in learners))
        rows.append(
            {
                "width_mult": width_mult,
                "parameters": step.family.parameters(step.net.space.largest),
                "macs_of_subnets": float(np.mean(macs[1:])),
                "step_ms": float(np.median(times[1:])) * 1e3,
            }
        )
    return rows


if __name__ == "__main__":
    main()
