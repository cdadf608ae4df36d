"""Searches of one supernet that take turns: by the loop that users write, and by fewer and cheaper evaluations.

The loop is evolution's. All that a search does is timed, what its strategy thinks about included; after a generation
the clock stops. What each search took for its front is judged exactly at the end.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import published
import report  # noqa: F401  (first, or benchmarks/search.py would hide the package)
import torch
from rich.progress import track
from torch.optim.swa_utils import update_bn

from search import pareto
from search.evaluator import Evaluator, Scored, evaluate_here
from search.history import Evaluation, History
from search.loop import Strategy, ask_and_tell
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
from supernet.training.execution import channels_last, computes_bf16


@dataclass(frozen=True)
class Searches:
    """What the searches have in common, and what the cheaper ones do otherwise."""

    population: int = 20
    """Architectures in a generation, of bayesian in four."""
    generations: int = 20
    """Of the loop; each of the others ends when it has the loop's hypervolume, or half as many evaluations again."""
    judges: int = 2000
    """Held-out images that judge."""
    calibration: int = 500
    """Training images for BatchNorm in the loop and in exact accuracies."""
    strategies: tuple[str, ...] = ("evolution", "bayesian")
    """Of the cheaper searches, of search.strategies.STRATEGIES."""
    few: int = 250
    """Training images for BatchNorm in the cheaper searches."""
    race: float = 0.5
    """Confidence of their races."""
    batch_size: int = 250
    """Images that a subnet runs on at a time."""


class Point(NamedTuple):
    """Where a search is after a generation."""

    wall_s: float  # of all that the search did so far
    cpu_s: float
    evaluated: int  # architectures
    front: list[Arch]  # of these, as the search sees it
    seen: float  # images that judged an architecture, in the mean


CHECKED = 5  # turns between two looks at whether a search has the loop's hypervolume, once the loop has ended
NEVER = Point(0.0, 0.0, 0, [], 0.0)


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


class Search:
    """A search that is asked for one generation after the other, and kept in `folder`.

    A generation that is there is not evaluated again: it took what it took then. What the loop had evaluated of a
    generation that was killed counts for nothing.
    """

    def __init__(self, problem: Problem, strategy: Strategy, judges: int, folder: Path, stack: ExitStack) -> None:
        self.problem, self.strategy, self.judges = problem, strategy, judges
        self.history = stack.enter_context(History(folder / "search.jsonl", problem.describe(), resume=True))
        self.points: list[Point] = []
        self._times = folder / "seconds.jsonl"

    def generations(self, evaluate: Evaluator, evaluations: int) -> Iterator[bool]:
        """Goes on by a generation whenever it is asked to, which is true, until there are so many evaluations."""
        taken = [json.loads(line) for line in self._times.read_text().splitlines()] if self._times.exists() else []
        known: list[Evaluation] = []
        seconds = np.zeros(2)  # by the clock, and of the processor
        while len(known) < evaluations:
            begun = now()
            archs = self.strategy.ask()
            if not archs:
                return
            given = _Given(archs, self.strategy)
            known += ask_and_tell(self.problem, given, evaluate, len(archs), history=self.history).evaluations
            if len(self.points) == len(taken):
                taken.append((now() - begun).tolist())
                with self._times.open("a") as file:
                    file.write(json.dumps(taken[-1]) + "\n")
            seconds += taken[len(self.points)]
            seen = np.mean([e.rejected.examples if e.rejected else self.judges for e in known])
            self.points.append(Point(*seconds.tolist(), len(known), self._front(known), float(seen)))
            yield True

    def _front(self, known: Sequence[Evaluation]) -> list[Arch]:
        judged = [evaluation for evaluation in known if evaluation.scores]
        scores = np.array([[evaluation.scores[ACCURACY]] for evaluation in judged])
        archs = [evaluation.arch for evaluation in judged]
        return [archs[index] for index in pareto.front(self.problem.values(scores, self.problem.price(archs)))]


def now() -> np.ndarray:
    """Seconds by the clock, and of this process's time."""
    return np.array([time.perf_counter(), time.process_time()])


class _Given:
    """A strategy that asks once."""

    def __init__(self, archs: Sequence[Arch], strategy: Strategy) -> None:
        self._archs, self._strategy = list(archs), strategy

    def ask(self) -> list[Arch]:
        archs, self._archs = self._archs, []
        return archs

    def tell(self, archs: Sequence[Arch], scores: np.ndarray) -> None:
        self._strategy.tell(archs, scores)


def paired(trained: Run, settings: Searches, seed: int, folder: Path) -> Iterator[dict[str, float]]:
    """A row for each generation of the loop: its time, its hypervolume, and when the other searches had reached that,
    all 0 for one that never did. From where they were stopped, if `folder` holds searches."""
    family, judges, net = trained.family, settings.judges, channels_last(trained.net)
    problem = make_problem(SearchJob(population=settings.population, evaluations=10**6), family, {})
    exact_images = RunBatches(trained.data, settings.calibration, seed, judges)
    exact = SupernetAccuracy(net, exact_images.images, family.resolution, settings.batch_size)
    loop = Loop(trained, exact_images, settings.batch_size)
    few_images = RunBatches(trained.data, settings.few, seed, judges)
    for resolution in family.space.choices["resolution"].values:  # loading is no part of it
        loop.ready(resolution)
        few_images(resolution)

    with ExitStack() as stack:

        def search(name: str, place: str) -> Search:
            strategy = make_strategy(name, problem, seed, settings.population)
            return Search(problem, strategy, judges, folder / place, stack)

        def races(past: Mapping[Arch, Evaluation]) -> Racing:
            score = SupernetAccuracy(net, few_images.images, family.resolution, settings.batch_size)
            score.bf16 = computes_bf16(torch.device("cpu"))
            racing = Racing(problem, evaluate_here({ACCURACY: WithExamples(score)}), judges, settings.race, seed, past)
            if past:
                list(racing([]))  # has the front judged again, which one that was not stopped remembers
            return racing

        users, others = search("evolution", "loop"), {name: search(name, name) for name in settings.strategies}
        volumes = Volumes(problem, exact, published.Known(folder / "exact.jsonl"))
        count = settings.generations * settings.population
        looping, looped = users.generations(loop, count), True
        going = {name: other.generations(races(other.history.past), 3 * count // 2) for name, other in others.items()}
        for turn in track(itertools.count(1), f"Searching, seed {seed}", total=None):
            looped = looped and next(looping, False)
            going = {name: steps for name, steps in going.items() if next(steps, False)}
            if not looped and turn % CHECKED == 0:
                wanted = volumes(users.points)[-1]
                going = {name: steps for name, steps in going.items() if volumes(others[name].points)[-1] < wanted}
            if not looped and not going:
                break
    reached = {name: volumes(other.points) for name, other in others.items()}
    for index, (point, wanted) in enumerate(zip(users.points, volumes(users.points))):
        row: dict[str, float] = {
            "seed": seed,
            "generation": index + 1,
            "hypervolume": wanted,
            "loop (s)": point.wall_s,
            "loop (CPU s)": point.cpu_s,
        }
        for name, other in others.items():
            then = next((p for p, found in zip(other.points, reached[name]) if found >= wanted), NEVER)
            row |= {
                f"{name} (s)": then.wall_s,
                f"{name} (CPU s)": then.cpu_s,
                f"{name}, evaluations": then.evaluated,
                f"{name}, images for each": then.seen,
            }
        yield row


class Volumes:
    """The largest hypervolume up to each generation, of what a search took for its front there, by exact accuracies."""

    def __init__(self, problem: Problem, exact: SupernetAccuracy, known: published.Known) -> None:
        self._problem, self._exact, self._known = problem, exact, known

    def __call__(self, points: Sequence[Point]) -> list[float]:
        return list(itertools.accumulate(map(self._volume, points), max))

    def _volume(self, point: Point) -> float:
        scores = np.array([[self._accuracy(arch)] for arch in point.front])
        return self._problem.hypervolume(self._problem.values(scores, self._problem.price(point.front)))

    def _accuracy(self, arch: Arch) -> float:
        return self._known.value(ACCURACY, arch.to_json(), lambda: self._exact([arch])[0])
