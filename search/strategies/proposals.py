"""Architectures worth evaluating: new ones, within the limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from search.limits import reachable
from search.problem import Problem
from supernet.space import Arch

ATTEMPTS = 50  # proposals for each architecture wanted before giving up
MUTATION_RATE = 0.1  # of the walk through admissible architectures where random ones are not admissible


class Proposals:
    """Gives out every admissible architecture of a problem at most once.

    Architectures are compared in canonical form, in which inactive choices do not count.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._given: set[Arch] = set()

    def new(self, archs: Iterable[Arch], count: int) -> list[Arch]:
        """The first `count` of `archs` that are admissible and were never given out, each once; now they are."""
        given = self.admissible(archs)[:count]
        self._given.update(given)
        return given

    def admissible(self, archs: Iterable[Arch]) -> list[Arch]:
        """Those of `archs` that `new` would give out, each once."""
        fresh = [arch for arch in dict.fromkeys(archs) if arch not in self._given]
        if not fresh:
            return []
        violations = self.problem.violation(self.problem.price(fresh))
        return [arch for arch, violation in zip(fresh, violations) if violation <= 1]

    def draw(self, propose: Callable[[int], list[Arch]], count: int) -> list[Arch]:
        """`count` new admissible architectures from repeated calls of `propose`, which is told how many to propose.

        Fewer, perhaps none, if `ATTEMPTS` proposals for each do not give as many.
        """
        drawn: list[Arch] = []
        attempts = 0
        while len(drawn) < count and attempts < ATTEMPTS * count:
            missing = count - len(drawn)
            expected = math.ceil(missing * (attempts + 1) / (len(drawn) + 1))
            tries = min(expected, ATTEMPTS * count - attempts, 1000)
            drawn += self.new(propose(tries), missing)
            attempts += tries
        return drawn

    def sample(self, count: int, generator: np.random.Generator) -> list[Arch]:
        """`count` new admissible architectures: random ones, and where limits leave too few of those, mutants.

        The mutants start from the random architectures and from one within the limits that `limits.reachable` finds.
        Fewer if the space has no more.
        """
        space = self.problem.space
        drawn = self.draw(lambda tries: [space.sample(generator) for _ in range(tries)], count)
        if len(drawn) == count:
            return drawn
        parents = [*drawn, reachable(self.problem, generator)]
        drawn += self.new(parents[-1:], 1)

        def mutants_of_parents(tries: int) -> list[Arch]:
            return [
                space.mutate(parents[generator.integers(len(parents))], generator, MUTATION_RATE) for _ in range(tries)
            ]

        while len(drawn) < count and (mutants := self.draw(mutants_of_parents, count - len(drawn))):
            drawn += mutants
            parents += mutants
        return drawn
