"""How evaluation scales with Ray workers, and the memory that they take.

    python benchmarks/scaling.py [--quick] [--no-real] [--json FILE]

Real evaluations: subnets of `mobilenet_v3_micro` on random images, one thread a worker, with 1 and 2 workers.
Simulated evaluations, to show where the driver becomes the limit: 2 to 64 workers. Each is a process of its own that
gets architectures and sends scores back as any worker does, but it sleeps where others compute, so that it needs no
core, and holds no supernet and no images, so that it needs no torch.

The start of the workers is not counted. Memory is the proportional set size (PSS, where a page that n processes share
counts 1/n) of a worker after its evaluations, on Linux: about 70 MB of a simulated one, nearly all of it Ray's, so that
64 take 4.5 GB. Ten minutes on 2 cores, most of it to start the processes. --quick stops at 4.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from report import report

from search.parallel import RayEvaluator
from search.problem import Score
from search.scores.accuracy import SupernetAccuracy, resized
from supernet.families import FAMILIES
from supernet.space import Arch, SearchSpace


@dataclass(frozen=True)
class Arguments:
    architectures: int = 48
    """Architectures of the real evaluation."""
    images: int = 1000
    """Images for calibration, and as many for evaluation."""
    sleep_s: float = 0.05
    """Seconds of a simulated evaluation."""
    workers: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    """Workers of the simulated evaluation."""
    real: bool = True
    """Real evaluations, too, which need two cores to themselves."""
    repetitions: int = 2
    """Repetitions of each measurement, of which the fastest counts."""
    quick: bool = False
    """Fewer architectures, images and workers."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    import ray

    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.quick:
        arguments = Arguments(16, 250, workers=(2, 4), real=arguments.real, repetitions=1, json=arguments.json)
    ray.init(num_cpus=max(arguments.workers), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    family = FAMILIES["mobilenet_v3_micro"](num_classes=10)
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(2, arguments.images, 3, 32, 32, generator=draw)
    labels = torch.randint(10, (arguments.images,), generator=draw)
    net = family.supernet().to(memory_format=torch.channels_last)
    score = SupernetAccuracy(net, resized(*images, labels), family.resolution, memory_bytes=0)  # as if it was new
    rows = []
    for workers in (1, 2) if arguments.real else ():
        archs = sample(family.space, arguments.architectures)
        rows.append({"evaluation": "real", **measured(family.space, score, archs, workers, arguments.repetitions)})
    sleeps = Sleeps(arguments.sleep_s)
    for workers in arguments.workers:
        archs = sample(family.space, 20 * workers)
        row = measured(family.space, sleeps, archs, workers, arguments.repetitions)
        rows.append({"evaluation": "simulated", **row})
    for row in rows:
        ideal = 1 / arguments.sleep_s if row["evaluation"] == "simulated" else rows[0]["evaluations / s"]
        row["efficiency"] = row["evaluations / s"] / row["workers"] / ideal
    most = rows[-1]["workers"]
    summary = {
        f"efficiency_{most}_workers": rows[-1]["efficiency"],
        f"mb_per_worker_of_{most}": rows[-1]["MB / worker"],
    }
    if arguments.real:
        summary["speedup_2_workers"] = rows[1]["evaluations / s"] / rows[0]["evaluations / s"]
    report(rows, summary, arguments.json)


class Sleeps:
    """A score that takes its time and no processor's."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        time.sleep(self._seconds * len(archs))
        return [0.0] * len(archs)


def sample(space: SearchSpace, count: int) -> list[Arch]:
    generator = np.random.default_rng(0)
    return [space.sample(generator) for _ in range(count)]


def measured(
    space: SearchSpace, score: Score, archs: Sequence[Arch], workers: int, repetitions: int
) -> dict[str, float]:
    """Evaluations a second of so many workers, by the fastest repetition, and the mean memory of a worker."""
    with RayEvaluator(space, {"process": process, "score": score}, workers) as evaluate:
        list(evaluate(archs[: 4 * workers]))  # imports
        fastest, processes = float("inf"), set()
        for _ in range(repetitions):
            begun = time.perf_counter()
            outcomes = list(evaluate(archs))
            fastest = min(fastest, time.perf_counter() - begun)
            assert all(outcome.error is None for outcome in outcomes)
            processes |= {int(outcome.scores["process"]) for outcome in outcomes}
        memory = [pss_mb(pid) for pid in processes]
    return {"workers": workers, "evaluations / s": len(archs) / fastest, "MB / worker": sum(memory) / len(memory)}


def process(archs: Sequence[Arch]) -> list[float]:
    """A score that says which process evaluates."""
    return [float(os.getpid())] * len(archs)


def pss_mb(pid: int) -> float:
    """The proportional set size of a process in MB, NaN where the system does not say."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except FileNotFoundError:
        return math.nan
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


if __name__ == "__main__":
    main()
