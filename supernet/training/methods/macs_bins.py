"""Drawing architectures uniformly over bins of MACs (SPOS, Guo et al. 2020, arXiv 1904.00420, section 3.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from supernet.space import Arch, SearchSpace

MOVES = 10_000  # before it is said that a bin is empty


@dataclass(frozen=True)
class MacsBins:
    """Architectures of `lowest` to `highest` MACs in bins that are `step` wide, of which the last may be narrower.

    Drawn at random, nearly all architectures of a large space have about the same MACs, and a supernet would hardly see
    those at the ends of the range. `sample` draws a bin uniformly, and in it an architecture by a random walk: from a
    random architecture by changes of a choice each, on average, that lead no further from the bin, and once in the bin,
    by twice as many changes within it as there are choices. Where no choice depends on another, such a walk goes
    towards the uniform distribution over the architectures of the bin, the longer the nearer (Metropolis et al. 1953).
    """

    space: SearchSpace
    macs: Callable[[Arch], int]
    lowest: float
    highest: float
    step: float

    def sample(self, generator: np.random.Generator) -> Arch:
        """ValueError if no architecture of the bin that was drawn is found."""
        low = self.lowest + self.step * generator.integers(np.ceil((self.highest - self.lowest) / self.step))
        high = min(low + self.step, self.highest)
        rate = 1 / len(self.space.choices)
        arch = self.space.sample(generator)
        distance = self._distance(arch, low, high)
        left = 2 * len(self.space.choices)  # changes in the bin
        for _ in range(MOVES):
            left -= not distance
            if left < 0:
                return arch
            other = self.space.mutate(arch, generator, rate)
            if (nearer := self._distance(other, low, high)) <= distance:
                arch, distance = other, nearer
        raise ValueError(
            f"no architecture of {low / 1e6:g} to {high / 1e6:g} million MACs was found: those of this space have "
            f"{self.macs(self.space.smallest) / 1e6:.4g} (the smallest) and {self.macs(self.space.largest) / 1e6:.4g} "
            "(the largest), say another range"
        )

    def _distance(self, arch: Arch, low: float, high: float) -> float:
        macs = self.macs(arch)
        return max(low - macs, macs - high, 0.0)
