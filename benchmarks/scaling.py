"""How evaluation scales with Ray workers.

    python benchmarks/scaling.py [--quick] [--json FILE]

Real evaluations: subnets of `mobilenet_v3_micro` on random images, one thread a worker, with 1 and 2 workers.
Simulated evaluations, which sleep and so need no cores: 2 to 64 workers, to show where the driver becomes the limit.
The start of the workers is not counted. Five minutes on 2 cores, most of it to start the processes, each of which takes
300 MB: `--workers 2 4 8 16 32` for a machine of less than 32 GB. --quick stops at 4.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
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
        arguments = Arguments(16, 250, workers=(2, 4), repetitions=1, json=arguments.json)
    ray.init(num_cpus=max(arguments.workers), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    family = FAMILIES["mobilenet_v3_micro"](num_classes=10)
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(2, arguments.images, 3, 32, 32, generator=draw)
    labels = torch.randint(10, (arguments.images,), generator=draw)
    net = family.supernet().to(memory_format=torch.channels_last)
    score = SupernetAccuracy(net, resized(*images, labels), family.resolution, memory_bytes=0)  # as if it was new
    real = {"accuracy": score}
    simulated = {"nothing": Sleeps(arguments.sleep_s)}
    rows = []
    for workers in (1, 2):
        archs = sample(family.space, arguments.architectures)
        rate = evaluations_per_second(family.space, real, archs, workers, arguments.repetitions)
        rows.append({"evaluation": "real", "workers": workers, "evaluations / s": rate})
    for workers in arguments.workers:
        archs = sample(family.space, 20 * workers)
        rate = evaluations_per_second(family.space, simulated, archs, workers, arguments.repetitions)
        rows.append({"evaluation": "simulated", "workers": workers, "evaluations / s": rate})
    for row in rows:
        ideal = 1 / arguments.sleep_s if row["evaluation"] == "simulated" else rows[0]["evaluations / s"]
        row["efficiency"] = row["evaluations / s"] / row["workers"] / ideal
    report(rows, {"speedup_2_workers": rows[1]["evaluations / s"] / rows[0]["evaluations / s"]}, arguments.json)


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


def evaluations_per_second(
    space: SearchSpace, scores: Mapping[str, Score], archs: Sequence[Arch], workers: int, repetitions: int
) -> float:
    with RayEvaluator(space, scores, workers) as evaluate:
        list(evaluate(archs[: 4 * workers]))  # imports
        fastest = float("inf")
        for _ in range(repetitions):
            begun = time.perf_counter()
            assert all(outcome.error is None for outcome in evaluate(archs))
            fastest = min(fastest, time.perf_counter() - begun)
    return len(archs) / fastest


if __name__ == "__main__":
    main()
