"""Multi-objective evolution of architectures: NSGA-II (Deb et al. 2002) with hard limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search import pareto
from search.problem import Problem
from search.strategies.proposals import Proposals
from supernet.space import Arch

# n architectures, s scores


@dataclass(frozen=True)
class EvolutionConfig:
    population: int = 100  # architectures that survive a generation
    offspring: int | None = None  # evaluated each generation; as many as survive unless given
    mutation_rate: float = 0.1  # probability for each choice of a child to change
    crossover_rate: float = 0.9  # probability that a child has two parents

    def __post_init__(self):
        if self.population < 2:
            raise ValueError(f"a population has at least 2 members, not {self.population}")
        if self.offspring is not None and self.offspring < 1:
            raise ValueError(f"a generation has at least 1 child, not {self.offspring}")
        for name in ("mutation_rate", "crossover_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, not {getattr(self, name)}")


class Evolution:
    """NSGA-II: `ask` for a generation of new architectures, `tell` their scores.

    The first generation is the smallest and the largest architecture, which often end the front, and random ones.
    Then parents win tournaments of two, by front and then by crowding; a child takes every choice from either parent
    and mutates; of the population and its children the best survive (`pareto.select`).
    Children that exceed a limit or were proposed before are replaced by others, so nothing is evaluated twice.
    """

    def __init__(self, problem: Problem, seed: int = 0, config: EvolutionConfig | None = None) -> None:
        self.problem = problem
        self.config = config or EvolutionConfig()
        self.population: list[Arch] = []  # best first
        self._values = np.empty((0, len(problem.objectives)))
        self._proposals = Proposals(problem)
        self._generator = np.random.default_rng(seed)

    def ask(self) -> list[Arch]:
        """The next generation: children, or random architectures if there are no parents or no new children.

        Smaller than asked for, or empty, when few or no new architectures can be found.
        """
        count = self.config.offspring or self.config.population
        if self.population and (children := self._proposals.draw(self._children, count)):
            return children
        space = self.problem.space
        ends = self._proposals.new([space.smallest, space.largest], self.config.population)
        return ends + self._proposals.sample(self.config.population - len(ends), self._generator)

    def tell(self, archs: Sequence[Arch], scores: np.ndarray) -> None:
        """The scores [n, s] of architectures, NaN for failed ones, which do not survive."""
        together = [*self.population, *archs]
        values = np.concatenate([self._values, self.problem.values(scores, self.problem.price(archs))])
        best = pareto.select(values, self.config.population)
        self.population = [together[index] for index in best]
        self._values = values[best]

    def _children(self, count: int) -> list[Arch]:
        return [self._child() for _ in range(count)]

    def _child(self) -> Arch:
        space, generator = self.problem.space, self._generator
        child = self._parent()
        if generator.random() < self.config.crossover_rate:
            child = space.crossover(child, self._parent(), generator)
        return space.mutate(child, generator, self.config.mutation_rate)

    def _parent(self) -> Arch:
        return self.population[self._generator.integers(len(self.population), size=2).min()]
