"""Two searches of one supernet that take turns: by the loop that users write, and by cheaper evaluations.

Both are evolution from the same seed, so that they ask for the same architectures until they are told otherwise. After
every generation the clock stops, and what each search takes for its front is judged exactly.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import report  # noqa: F401  (first, or benchmarks/search.py would hide the package)
import torch
from rich.progress import track
from torch.optim.swa_utils import update_bn

from search import pareto
from search.evaluator import Evaluator, EvaluatorOfParts, Scored, evaluate_here
from search.history import Evaluation
from search.loop import ask_and_tell
from search.problem import Problem
from search.racing import Racing
from search.run import ACCURACY, make_problem
from search.scores.accuracy import SupernetAccuracy, WithExamples
from search.scores.judges import RunBatches
from search.settings import SearchJob
from search.strategies import make_strategy
from supernet import Arch
from supernet.artifacts.runs import Run
from supernet.training.data.batch import on, split
from supernet.training.execution import computes_bf16


@dataclass(frozen=True)
class CheaperEvaluations:
    """How both searches evaluate."""

    population: int = 8
    """Architectures in a generation."""
    generations: int = 20
    """That the loop evaluates, and half as many again for the other if it needs them."""
    judges: int = 2000
    """Held-out images that judge."""
    calibration: int = 800
    """Training images for BatchNorm in the loop and in exact accuracies."""
    few: int = 200
    """The same in cheaper evaluations."""
    race: float = 0.5
    """Confidence of races."""
    batch_size: int = 250
    """Images that a subnet runs on at a time."""


class Point(NamedTuple):
    """Where a search is after a generation."""

    wall_s: float  # of evaluations so far
    cpu_s: float
    front: list[Arch]  # of what it has evaluated, as it sees it
    seen: float  # images that judged an architecture so far, in the mean


@dataclass
class Clock:
    """The time that an evaluator takes."""

    evaluate: Evaluator
    wall_s: float = 0.0
    cpu_s: float = 0.0

    def __call__(self, archs: Sequence[Arch]) -> Iterator[Scored]:
        begun = time.perf_counter(), time.process_time()
        found = list(self.evaluate(archs))
        self.wall_s += time.perf_counter() - begun[0]
        self.cpu_s += time.process_time() - begun[1]
        return iter(found)


class Counting:
    """What a race judges by, and how many images it has asked for, each counted for each architecture."""

    def __init__(self, judge: EvaluatorOfParts) -> None:
        self._judge = judge
        self.seen = 0

    def __call__(self, archs: Sequence[Arch], examples: np.ndarray) -> Iterator[Scored]:
        self.seen += len(archs) * len(examples)
        return self._judge(archs, examples)


class Loop:
    """The loop that users write: extract, `update_bn`, count what is right, one architecture after the other."""

    def __init__(self, trained: Run, batches: RunBatches, batch_size: int) -> None:
        self._trained, self._batches, self._size = trained, batches, batch_size
        self._ready: dict[int, tuple[list[torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]] = {}

    def __call__(self, archs: Sequence[Arch]) -> Iterator[Scored]:
        for index, arch in enumerate(archs):
            calibration, judges = self.ready(self._trained.family.resolution(arch))
            model = self._trained.net.extract(arch)
            update_bn(calibration, model)
            model.eval()
            with torch.inference_mode():
                right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in judges)
            yield Scored(index, {ACCURACY: right / sum(len(labels) for _, labels in judges)})

    def ready(self, resolution: int) -> tuple[list[torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]:
        if resolution not in self._ready:
            calibration, images, labels = self._batches.images(resolution)
            cpu = torch.device("cpu")
            parts = [
                [on(cpu, part, torch.channels_last) for part in split(x, self._size)] for x in (calibration, images)
            ]
            self._ready[resolution] = parts[0], list(zip(parts[1], labels.split(self._size)))
        return self._ready[resolution]


@dataclass
class Search:
    """A search that is asked for one generation after the other."""

    problem: Problem
    clock: Clock
    seed: int
    population: int
    seen: Callable[[int], float]  # images that judged an architecture, in the mean over so many
    points: list[Point] = field(default_factory=list)

    def generations(self, count: int) -> Iterator[None]:
        """Goes on by a generation whenever it is asked to."""
        strategy = make_strategy("evolution", self.problem, self.seed, self.population)
        known: list[Evaluation] = []
        evaluated = 0
        for _ in range(count):
            archs = strategy.ask()
            found = ask_and_tell(self.problem, _Given(archs, strategy), self.clock, len(archs)).evaluations
            known += [evaluation for evaluation in found if evaluation.scores]
            values = np.array(
                [[-e.scores[ACCURACY], *(e.costs[n] for n in self.problem.objectives[1:])] for e in known]
            )
            front = [known[index].arch for index in pareto.front(values)]
            evaluated += len(archs)
            self.points.append(Point(self.clock.wall_s, self.clock.cpu_s, front, self.seen(evaluated)))
            yield


class _Given:
    """A strategy that asks once."""

    def __init__(self, archs: Sequence[Arch], strategy) -> None:
        self._archs, self._strategy = list(archs), strategy

    def ask(self) -> list[Arch]:
        archs, self._archs = self._archs, []
        return archs

    def tell(self, archs: Sequence[Arch], scores: np.ndarray) -> None:
        self._strategy.tell(archs, scores)


def paired(trained: Run, settings: CheaperEvaluations, seed: int) -> Iterator[dict[str, float]]:
    """A row for each generation of the loop: its time, its hypervolume, and when the other search had reached that."""
    family, judges = trained.family, settings.judges
    problem = make_problem(SearchJob(population=settings.population, evaluations=10**6), family, {})
    exact_images = RunBatches(trained.data, settings.calibration, seed, judges)
    few_images = RunBatches(trained.data, settings.few, seed, judges)
    exact = SupernetAccuracy(trained.net, exact_images.images, family.resolution, settings.batch_size)
    cheap = SupernetAccuracy(trained.net, few_images.images, family.resolution, settings.batch_size)
    cheap.bf16 = computes_bf16(torch.device("cpu"))
    loop = Loop(trained, exact_images, settings.batch_size)
    for resolution in family.space.choices["resolution"].values:  # loading is no part of it
        loop.ready(resolution)
        few_images(resolution)
    judge = Counting(evaluate_here({ACCURACY: WithExamples(cheap)}))
    racing = Racing(problem, judge, judges, settings.race, seed)
    users = Search(problem, Clock(loop), seed, settings.population, lambda evaluated: judges)
    cheaper = Search(problem, Clock(racing), seed, settings.population, lambda evaluated: judge.seen / evaluated)
    accuracy: dict[Arch, float] = {}

    def volumes(search: Search) -> list[float]:
        """The largest hypervolume up to each generation."""
        archs = {arch for point in search.points for arch in point.front}
        fresh = sorted(archs - accuracy.keys(), key=Arch.to_json)
        accuracy.update(zip(fresh, exact(fresh)))
        found = (
            problem.values(np.array([[accuracy[arch]] for arch in point.front]), problem.price(point.front))
            for point in search.points
        )
        return list(itertools.accumulate(map(problem.hypervolume, found), max))

    count = settings.generations
    turns = itertools.zip_longest(users.generations(count), cheaper.generations(count + count // 2))
    for turn, _ in enumerate(track(turns, f"Searching, seed {seed}", total=count + count // 2), start=1):
        if turn >= count and volumes(cheaper)[-1] >= volumes(users)[-1]:
            break
    reached = volumes(cheaper)
    for index, (point, wanted) in enumerate(zip(users.points, volumes(users))):
        then = next((p for p, found in zip(cheaper.points, reached) if found >= wanted), None)
        yield {
            "seed": seed,
            "generation": index + 1,
            "hypervolume": wanted,
            "hypervolume, cheaper": reached[index],
            "loop (s)": point.wall_s,
            "cheaper, same generation (s)": cheaper.points[index].wall_s,
            "cheaper, same hypervolume (s)": then and then.wall_s,
            "images, cheaper": cheaper.points[index].seen,
            "loop (CPU s)": point.cpu_s,
            "cheaper, same generation (CPU s)": cheaper.points[index].cpu_s,
            "cheaper, same hypervolume (CPU s)": then and then.cpu_s,
        }
