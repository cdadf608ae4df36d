"""What weight sharing costs in training: a sandwich step of the supernet against the plain models it contains.

    python benchmarks/train_step.py [--quick] [--json FILE] [--device cuda --precision bf16 --resolutions 224]

A step trains the largest subnet on labels and two random ones and the smallest on its logits, with new random subnets
every step. The floor is the same four plain timm models, built beforehand, each forward and backward on the same batch
with the same losses, nothing shared. Both are timed in turn, in one process, the optimizer left out of both. Reported
are the ratio of each pair of steps (median and quartiles), and the peak memory of a step over that of the largest
plain model's own: `peak_memory_ratio` of what is in use, `peak_process_ratio` of what the process takes, with what
glibc's heap keeps between tensors of ever new sizes. Ten minutes on 2 cores; --quick takes one.

On a GPU the same four models are also CUDA graphs, the floor where launches cost nothing (`graph_floor_ratio`), and
`gpu_busy` is the part of a step in which kernels run. A new shape costs far more the first time than ever after:
`--known 3` runs the subnets of each step three times before they are timed, of which graphs need two.
"""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from compared_steps import GraphFloor, Precision, Step, Way, train_plain
from report import report
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from supernet.families import FAMILIES

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
    """Runs of each step's subnets before they are timed."""
    way: Way = "eager"
    """How the supernet's steps are executed: eager, graphs or compile."""
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
    rows, summary = [], {}
    for resolution, batch_size in settings:
        row = compare(arguments, resolution, batch_size, 7 if arguments.quick else arguments.steps)
        if arguments.device == "cpu":
            row["peak_memory_ratio"] = memory_ratio(arguments, resolution, batch_size, heap=False)
            row["peak_process_ratio"] = memory_ratio(arguments, resolution, batch_size, heap=True)
        rows.append(row)
        suffix = resolution if arguments.device == "cpu" else f"{resolution}_{batch_size}_{arguments.precision}"
        summary[f"overhead_ratio_{suffix}"] = row["ratio"]
        if arguments.device == "cuda":
            summary[f"images_per_second_{suffix}"] = batch_size / row["supernet_ms"] * 1e3
            summary[f"graph_floor_ratio_{suffix}"] = row["graph_floor_ratio"]
            summary[f"gpu_busy_{suffix}"] = row["gpu_busy"]
    summary["peak_memory_ratio"] = max(row["peak_memory_ratio"] for row in rows)
    details = {"space": arguments.space, "threads": torch.get_num_threads(), "precision": arguments.precision}
    details["way"] = arguments.way
    if arguments.device == "cuda":
        details["gpu"] = torch.cuda.get_device_name()
    if arguments.growth and not arguments.quick:
        details["growth"] = growth(arguments, *settings[0])
        details["growth_with_size"] = growth_with_size(arguments, *settings[0])
    report(rows, summary, arguments.json, **details)


def _step(arguments: Arguments, resolution: int, batch_size: int, **options: float) -> Step:
    return Step(
        arguments.space,
        resolution,
        batch_size,
        device=arguments.device,
        precision=arguments.precision,
        way=arguments.way,
        **options,
    )


def compare(arguments: Arguments, resolution: int, batch_size: int, steps: int) -> dict[str, float]:
    """Shared and plain steps in turn, the order swapped every time."""
    step = _step(arguments, resolution, batch_size)
    ratios, shared, plain, floor = [], [], [], []
    for index in range(-2, steps):  # two to warm up
        learners = step.learners(index % 1000)
        models = step.plain_models(learners)
        gc.collect()
        plain_step = partial(train_plain, models, *step.batch, arguments.precision)
        runs = [partial(step.shared, learners), plain_step]
        if index % 2:
            runs.reverse()
        for run in arguments.known * runs:
            run()
        times = [step.seconds(run) for run in runs]
        if index % 2:
            times.reverse()
        if index >= 0:
            shared.append(times[0])
            plain.append(times[1])
            ratios.append(times[0] / times[1])
        if index >= 0 and step.device.type == "cuda":
            graphs = GraphFloor(models, *step.batch, arguments.precision)
            graphs()
            floor.append(step.seconds(graphs))
    quartiles = np.quantile(ratios, [0.25, 0.5, 0.75])
    on_gpu = {}
    if floor:
        on_gpu["graph_floor_ms"] = float(np.median(floor)) * 1e3
        on_gpu["graph_floor_ratio"] = float(np.median(np.divide(shared, floor)))
        on_gpu["peak_memory_ratio"] = gpu_memory_ratio(step, steps, arguments.precision)
        kernel_ms = kernel_seconds(step, steps) * 1e3
        on_gpu |= {"kernel_ms": kernel_ms, "gpu_busy": kernel_ms / (float(np.median(shared)) * 1e3)}
    return {
        "resolution": resolution,
        "batch_size": batch_size,
        "supernet_ms": float(np.median(shared)) * 1e3,
        "plain_ms": float(np.median(plain)) * 1e3,
        "ratio": float(quartiles[1]),
        "ratio_quartile_1": float(quartiles[0]),
        "ratio_quartile_3": float(quartiles[2]),
        "steps": steps,
        **on_gpu,
    }


def kernel_seconds(step: Step, steps: int) -> float:
    """Seconds that kernels take of a step whose shapes are known, on average."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for index in range(steps):
            step.shared(step.learners(index))
        torch.cuda.synchronize()
    kernels = [event for event in found.events() if event.device_type == DeviceType.CUDA]
    return sum(event.time_range.elapsed_us() for event in kernels) / steps / 1e6


def gpu_memory_ratio(step: Step, steps: int, precision: Precision) -> float:
    """Peak memory of steps whose shapes are known over that of the largest plain model's, each with its own weights and
    gradients, but for what both have in common."""
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for index in range(steps):
        step.shared(step.learners(index))
    weights = sum(tensor.nbytes for tensor in step.net.state_dict().values())
    shared = torch.cuda.max_memory_allocated() - held + weights
    step.net.zero_grad()
    model = step.net.extract(step.net.space.largest)
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        train_plain([model], *step.batch, precision)
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    return shared / (torch.cuda.max_memory_allocated() - held + weights)


def memory_ratio(arguments: Arguments, resolution: int, batch_size: int, heap: bool) -> float:
    """Peak memory of a supernet step over that of the largest plain model's, each in a process of its own.

    Without `heap` glibc hands memory that is freed back at once, so that what is in use is measured, and not what its
    heap keeps between tensors of ever new sizes.
    """
    environment = os.environ if heap else os.environ | dict.fromkeys(GLIBC_THRESHOLDS, "100000")
    peaks = []
    for what in ("supernet", "plain"):
        command = [sys.executable, __file__, "--memory-of", what, "--space", arguments.space]
        command += ["--resolutions", str(resolution), "--batch-sizes", str(batch_size)]
        command += ["--precision", arguments.precision, "--steps", str(arguments.steps), "--way", arguments.way]
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
            step.shared(step.learners(index))
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
        times = [step.seconds(lambda s=step, i=i: s.shared(s.learners(i))) for i in range(8)][1:]
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
            times.append(step.seconds(partial(step.shared, learners)))
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
