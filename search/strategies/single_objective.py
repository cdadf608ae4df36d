"""Evolution for one score under limits, as Once-for-All and SPOS do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search.problem import Problem
from search.strategies.proposals import Proposals
from supernet.space import Arch

# n architectures, s scores


@dataclass(frozen=True)
class SingleObjectiveConfig:
    """Of each generation after the first, `mutants` are mutated parents and `crossovers` have two parents."""

    population: int = 100  # random architectures in the first generation
    parents: int = 25  # the best of all so far, from which the next generation comes
    mutants: int = 50
    crossovers: int = 50
    mutation_rate: float = 0.1  # probability for each choice of a mutant to change

    def __post_init__(self):
        for name in ("population", "parents"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is a number of architectures, 1 or more, not {getattr(self, name)}")
        if min(self.mutants, self.crossovers) < 0 or self.mutants + self.crossovers == 0:
            raise ValueError(f"a generation of {self.mutants} mutants and {self.crossovers} crossovers is none")
        if not 0 < self.mutation_rate <= 1:
            raise ValueError(f"mutation_rate is a probability above 0, not {self.mutation_rate}")


def once_for_all(size: int = 100) -> SingleObjectiveConfig:
    """Cai et al., ICLR 2020, arXiv 1908.09791, as in the authors' search: a quarter are parents, half are mutants."""
    return SingleObjectiveConfig(size, max(size // 4, 1), size // 2, size - size // 2)


def spos() -> SingleObjectiveConfig:
    """Guo et al., ECCV 2020, arXiv 1904.00420, algorithm 1: 50 candidates, of which the best 10 are parents."""
    return SingleObjectiveConfig(population=50, parents=10, mutants=25, crossovers=25)


class SingleObjectiveEvolution:
    """`ask` for a generation of new architectures, `tell` their scores; the first score alone counts.

    Children beyond a limit or proposed before are replaced by others, so nothing is evaluated twice.
    """

    def __init__(self, problem: Problem, seed: int = 0, config: SingleObjectiveConfig | None = None) -> None:
        self.problem = problem
        self.config = config or SingleObjectiveConfig()
        self.parents: list[Arch] = []  # best first
        self._scores = np.empty(0)
        self._proposals = Proposals(problem)
        self._generator = np.random.default_rng(seed)

    def ask(self) -> list[Arch]:
        """The next generation: children, or random architectures if there are no parents or no new children.

        Smaller than asked for, or empty, when few or no new architectures can be found.
        """
        if self.parents:
            mutants = self._proposals.draw(self._mutants, self.config.mutants)
            if children := mutants + self._proposals.draw(self._crossovers, self.config.crossovers):
                return children
        return self._proposals.sample(self.config.population, self._generator)

    def tell(self, archs: Sequence[Arch], scores: np.ndarray) -> None:
        """The scores [n, s] of architectures; failed ones, which are NaN, do not become parents."""
        together = [*self.parents, *archs]
        values = np.concatenate([self._scores, scores[:, 0]])
        order = np.argsort(-values, kind="stable")
        best = [index for index in order if np.isfinite(values[index])][: self.config.parents]
        self.parents = [together[index] for index in best]
        self._scores = values[best]

    def _parents(self, count: int) -> list[Arch]:
        return [self.parents[index] for index in self._generator.integers(len(self.parents), size=count)]

    def _mutants(self, count: int) -> list[Arch]:
        return self.problem.space.mutants(self._parents(count), self._generator, self.config.mutation_rate)

    def _crossovers(self, count: int) -> list[Arch]:
        return self.problem.space.crossovers(self._parents(count), self._parents(count), self._generator)
