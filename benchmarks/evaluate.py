"""How much faster a population is evaluated as a trie than one by one.

    python benchmarks/evaluate.py [--quick] [--json FILE] [--data ../shared/data]

Trains a small supernet of `mobilenet_v3_micro` on a part of CIFAR-10, a minute, and lets evolution search it. The
populations that are timed are those that evolution asks for in its 1st, 5th and 20th generation: NSGA-II for accuracy
and MACs, and evolution as in Once-for-All for accuracy with at most half the MACs. The naive loop takes every
architecture by itself: build and extract, recalibrate, evaluate. Both run on the same supernet, in channels last, on
the same batches, in one process; the largest difference of any logit is reported. "Trie" evaluates a population by
itself; "in a search" remembers activations of the generation before, in 1 GiB, as a search does, and is the headline.
Seconds of processor time are given too, which other processes disturb less. A quarter of an hour on 2 cores.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath

import numpy as np
import torch
import tyro
from report import report
from torch import Tensor

from search import trie
from search.evaluate import SupernetAccuracy
from search.job import SearchJob, make_problem
from search.problem import Problem
from search.scores import RunImages
from search.strategies import make_strategy
from supernet import Arch, Supernet
from supernet.calibration import calibrate
from supernet.recipes import cifar10
from supernet.runs import Run, run_job

GENERATIONS = (1, 5, 20)


@dataclass(frozen=True)
class Arguments:
    population: int = 100
    """Architectures in a generation."""
    images: int = 2000
    """Images for calibration, and as many for evaluation."""
    search_images: int = 250
    """The same for the search that leads to the populations."""
    batch_size: int = 250
    """Images that a subnet runs on at a time."""
    strategies: tuple[str, ...] = ("evolution", "once_for_all")
    """Strategies whose populations are timed; the first one's are the headline."""
    epochs: int = 3
    """Passes over 5,000 images."""
    seed: int = 0
    """All that is random follows from it."""
    data: FilePath = FilePath("../shared/data")
    """Folder with cifar10/."""
    quick: bool = False
    """20 architectures, 250 images, one strategy."""
    json: FilePath | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.quick:
        arguments = dataclasses.replace(
            arguments, population=20, images=250, search_images=100, epochs=1, strategies=("evolution",)
        )
    trained = train(arguments)
    rows, differences = [], []
    for strategy in arguments.strategies:
        for generation, (before, archs) in populations(trained, arguments, strategy).items():
            row, difference = compare(trained, before, archs, arguments)
            rows.append({"strategy": strategy, "generation": generation, **row})
            differences.append(difference)
            print(rows[-1], flush=True)
    summary = {
        f"speedup_generation_{row['generation']}": row["speed-up in a search"] for row in rows[: len(GENERATIONS)]
    }
    for row in rows[len(GENERATIONS) :]:
        summary[f"speedup_{row['strategy']}_generation_{row['generation']}"] = row["speed-up in a search"]
    report(rows, summary | {"max_logit_difference": max(differences)}, arguments.json, threads=torch.get_num_threads())


def train(arguments: Arguments) -> Run:
    job = cifar10()
    images = arguments.data / "cifar10"
    data = dataclasses.replace(
        job.data,
        root=str(images / "train.tar"),
        test_root=str(images / "val.tar"),
        holdout=0.9,
        workers=0,
        num_classes=10,
    )
    settings = dataclasses.replace(
        job.train, epochs=arguments.epochs, warmup_epochs=0.5, batch_size=64, lr=0.4, ema_decay=None, eval_epochs=0
    )
    with tempfile.TemporaryDirectory() as directory:
        return run_job(dataclasses.replace(job, data=data, train=settings), FilePath(directory) / "run")


def populations(trained: Run, arguments: Arguments, strategy_name: str) -> dict[int, tuple[list[Arch], list[Arch]]]:
    """What the strategy asks for in the generations that count, after what it asked for in the one before."""
    limit = trained.family.macs(trained.family.space.largest) / 2
    limits = {} if strategy_name == "evolution" else {"macs": limit}
    job = SearchJob(strategy=strategy_name, limits=limits, population=arguments.population, seed=arguments.seed)
    problem: Problem = make_problem(job, trained.family, {})
    strategy = make_strategy(strategy_name, problem, job.seed, job.population)
    images = RunImages(trained.data, arguments.search_images, arguments.seed, arguments.search_images)
    score = SupernetAccuracy(trained.net, images, trained.family.resolution, arguments.batch_size)
    asked, before = {}, []
    for generation in range(1, max(GENERATIONS) + 1):
        archs = strategy.ask()
        if generation in GENERATIONS:
            asked[generation] = before, archs
        strategy.tell(archs, np.array(score(archs))[:, None])
        before = archs
    return asked


def compare(
    trained: Run, before: list[Arch], archs: list[Arch], arguments: Arguments
) -> tuple[dict[str, float], float]:
    net = trained.net.to(memory_format=torch.channels_last)
    images = RunImages(trained.data, arguments.images, arguments.seed, arguments.images)
    batches = {}
    for size in {trained.family.resolution(arch) for arch in [*before, *archs]}:
        calibration, evaluation, _ = images(size)
        batches[size] = trie.Batches(
            list(calibration.split(arguments.batch_size)), list(evaluation.split(arguments.batch_size))
        )

    remembered = trie.Remembered(2**30)

    def as_trie() -> dict[int, Tensor]:
        return dict(trie.evaluate(net, archs, batches.__getitem__, trained.family.resolution))

    def in_search() -> dict[int, Tensor]:
        return dict(trie.evaluate(net, archs, batches.__getitem__, trained.family.resolution, remembered))

    def one_by_one() -> dict[int, Tensor]:
        return {i: naive(net, arch, batches[trained.family.resolution(arch)]) for i, arch in enumerate(archs)}

    shared, shared_s, _ = timed(as_trie)
    for _ in trie.evaluate(net, before, batches.__getitem__, trained.family.resolution, remembered):
        pass
    searched, searched_s, searched_cpu_s = timed(in_search)
    alone, alone_s, alone_cpu_s = timed(one_by_one)
    difference = max(
        float((logits - other[index]).abs().max()) for index, logits in alone.items() for other in (shared, searched)
    )
    row = {
        "architectures": len(archs),
        "one by one (s)": alone_s,
        "trie (s)": shared_s,
        "in a search (s)": searched_s,
        "speed-up of the trie": alone_s / shared_s,
        "speed-up in a search": alone_s / searched_s,
        "the same in processor time": alone_cpu_s / searched_cpu_s,
        "largest difference of a logit": difference,
        "largest logit": max(float(logits.abs().max()) for logits in alone.values()),
    }
    return row, difference


def naive(net: Supernet, arch: Arch, batches: trie.Batches) -> Tensor:
    model = net.extract(arch).eval()
    calibrate(model, batches.calibration)
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in batches.evaluation])


def timed(function: Callable[[], dict[int, Tensor]]) -> tuple[dict[int, Tensor], float, float]:
    """The result, and the seconds it took, of the clock and of the processor."""
    begun, begun_cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, time.perf_counter() - begun, time.process_time() - begun_cpu


if __name__ == "__main__":
    main()
