"""A search of a trained supernet: what it was asked to do, and its parts made from that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from predictors import LatencyPredictor
from search.activation_memory import peak_activation
from search.evaluate import EvaluationImages, SupernetAccuracy
from search.history import Evaluation, History
from search.limits import reachable
from search.parallel import RayEvaluator
from search.problem import Cost, Problem
from search.run import Evaluator, Generation, Result, Strategy, evaluate_here, run
from search.strategies import check_strategy, make_strategy
from supernet.data import Data
from supernet.families import Family
from supernet.runs import Run
from supernet.space import Arch

ACCURACY = "accuracy"
ACTIVATION_BYTES = "activation_bytes"


@dataclass(frozen=True)
class SearchJob:
    """All that the result of a search follows from, given the run."""

    strategy: str = "evolution"
    """One of search.strategies.STRATEGIES."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """The largest admissible macs, parameters, activation_bytes (for one image) and milliseconds by device name."""
    objectives: tuple[str, ...] = ()
    """Costs to trade off against accuracy; by default the latency on every device, or macs if there is none."""
    evaluations: int = 1000
    """Architectures to evaluate."""
    population: int = 100
    """Architectures in a generation."""
    images: int | None = None
    """Held-out images that judge an architecture; all if None."""
    calibration_images: int | None = None
    """Training images for BatchNorm; as in training if None."""
    batch_size: int = 250
    """Images that a subnet runs on at a time."""
    seed: int = 0
    """All that is random follows from it."""

    def __post_init__(self):
        check_strategy(self.strategy)
        for name in ("evaluations", "population", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")


class SearchOutcome(NamedTuple):
    result: Result
    strategy: Strategy
    retried: list[str]  # what Ray workers that died made necessary


def run_search(
    job: SearchJob,
    trained: Run,
    predictors: Mapping[str, LatencyPredictor],
    history: Path | None = None,
    *,
    resume: bool = False,
    workers: int = 0,
    threads: int = 1,
    address: str | None = None,
    on_evaluation: Callable[[Evaluation, int], None] | None = None,
    on_generation: Callable[[Generation], None] | None = None,
) -> SearchOutcome:
    """Search a finished training run, with latency predictors by the names of their devices.

    With `workers`, on so many Ray workers of `threads` threads each, in the cluster at `address` or on this machine;
    the result is the same. Evaluations are recorded in the file `history`, from which `resume` goes on.
    """
    problem = make_problem(job, trained.family, predictors)
    strategy = make_strategy(job.strategy, problem, job.seed, job.population)
    scores = {ACCURACY: accuracy_score(job, trained)}
    reachable(problem, np.random.default_rng(0))  # before workers start
    with ExitStack() as stack:
        record = stack.enter_context(History(history, describe(job, problem), resume)) if history else None
        evaluate: Evaluator = evaluate_here(scores)
        if workers:
            evaluate = stack.enter_context(RayEvaluator(problem.space, scores, workers, threads, address=address))
        result = run(
            problem,
            strategy,
            evaluate,
            job.evaluations,
            history=record,
            on_evaluation=on_evaluation,
            on_generation=on_generation,
        )
        return SearchOutcome(result, strategy, evaluate.retried if workers else [])


def describe(job: SearchJob, problem: Problem) -> dict[str, object]:
    """What a history must agree on to be continued: everything but how many evaluations there are to be."""
    return problem.describe() | {n: v for n, v in dataclasses.asdict(job).items() if n not in ("evaluations", "limits")}


def load_predictors(directories: Sequence[Path], family: Family) -> dict[str, LatencyPredictor]:
    """Latency predictors by the name of their device; ValueError if two have one name or one is of another space."""
    predictors: dict[str, LatencyPredictor] = {}
    for directory in directories:
        predictor = LatencyPredictor.load(directory, family.space)
        name = predictor.device.name if predictor.device else directory.name
        if name in predictors:
            raise ValueError(f"two latency predictors are for the device {name!r}; the second is in {directory}")
        predictors[name] = predictor
    return predictors


def make_problem(job: SearchJob, family: Family, predictors: Mapping[str, LatencyPredictor]) -> Problem:
    """Accuracy and costs of a family's architectures, with the job's limits; ValueError for a limit on nothing."""
    costs: dict[str, Cost] = {
        "macs": lambda archs: [family.macs(arch) for arch in archs],
        "parameters": lambda archs: [family.parameters(arch) for arch in archs],
        **{name: predictor.cost for name, predictor in predictors.items()},
    }
    if ACTIVATION_BYTES in [*job.limits, *job.objectives]:
        costs[ACTIVATION_BYTES] = peak_activation(family.build, lambda arch: image_size(family, arch))
    for what, names in (("a limit on", job.limits), ("an objective", job.objectives)):
        if unknown := [name for name in names if name not in costs]:
            raise ValueError(
                f"{what} {unknown[0]!r}, which is no cost and no device with a latency predictor; "
                f"there are {', '.join(dict.fromkeys([*costs, ACTIVATION_BYTES]))}"
            )
    objectives = job.objectives or tuple(predictors) or ("macs",)
    return Problem(family.space, [ACCURACY], costs, job.limits, [ACCURACY, *objectives])


def image_size(family: Family, arch: Arch) -> tuple[int, int, int]:
    """Channels, height and width of the images that an architecture is meant for."""
    size = family.resolution(arch)
    return family.in_chans, size, size


def accuracy_score(job: SearchJob, trained: Run) -> SupernetAccuracy:
    """The accuracy of a run's subnets on its held-out images."""
    count = job.calibration_images or trained.job.train.calibration_images
    images = RunImages(trained.data, count, trained.job.train.seed, job.images)
    net = trained.net.to(memory_format=torch.channels_last)
    return SupernetAccuracy(net, images, trained.family.resolution, job.batch_size)


class RunImages:
    """Images of a run to calibrate and to judge by, kept in memory at every resolution that was asked for."""

    def __init__(self, data: Data, calibration_images: int, seed: int, images: int | None) -> None:
        self._data = data
        self._calibration_images = calibration_images
        self._seed = seed
        self._images = images
        self._known: dict[int, EvaluationImages] = {}

    def __call__(self, resolution: int) -> EvaluationImages:
        if resolution not in self._known:
            self._known[resolution] = EvaluationImages(
                self._data.calibration_images(resolution, self._calibration_images, self._seed),
                *self._data.images(self._data.holdout, resolution, self._images),
            )
        return self._known[resolution]

    def __getstate__(self):
        return self.__dict__ | {"_known": {}}  # each process loads its own
