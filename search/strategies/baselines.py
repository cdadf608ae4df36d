"""What evolution has to beat: random search and local search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search import pareto
from search.limits import neighbours
from search.problem import Problem
from search.strategies.proposals import Proposals
from supernet.space import Arch

# n architectures, s scores


class RandomSearch:
    """Random admissible architectures, `batch` at a time."""

    def __init__(self, problem: Problem, seed: int = 0, batch: int = 100) -> None:
        self._proposals = Proposals(problem)
        self._generator = np.random.default_rng(seed)
        self._batch = batch

    def ask(self) -> list[Arch]:
        return self._proposals.sample(self._batch, self._generator)

    def tell(self, archs: Sequence[Arch], scores: np.ndarray) -> None:
        """Nothing is learnt from scores."""


class LocalSearch:
    """Evaluates all neighbours (`limits.neighbours`) of each architecture of the Pareto front in turn.

    With a single objective this is the local search of White et al. (arXiv 2004.08996), moving to the best neighbour.
    It begins with `batch` random architectures, and does so again when the neighbours of the whole front are known.
    """

    def __init__(self, problem: Problem, seed: int = 0, batch: int = 10) -> None:
        self.problem = problem
        self._proposals = Proposals(problem)
        self._generator = np.random.default_rng(seed)
        self._batch = batch
        self._front: list[Arch] = []
        self._values = np.empty((0, len(problem.objectives)))
        self._expanded: set[Arch] = set()

    def ask(self) -> list[Arch]:
        for arch in self._front:
            if arch not in self._expanded:
                self._expanded.add(arch)
                around = neighbours(self.problem.space, arch)
                if fresh := self._proposals.new(around, len(around)):
                    return fresh
        self._front, self._values = [], self._values[:0]
        return self._proposals.sample(self._batch, self._generator)

    def tell(self, archs: Sequence[Arch], scores: np.ndarray) -> None:
        together = [*self._front, *archs]
        values = np.concatenate([self._values, self.problem.values(scores, self.problem.price(archs))])
        best = pareto.front(values)
        self._front = [together[index] for index in best]
        self._values = values[best]
