"""Which subnets a training step runs, and what each of them learns from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from supernet.space import Arch, SearchSpace


class Path(NamedTuple):
    """One subnet's part in a step."""

    arch: Arch
    teacher: int | None = None  # the earlier path of this step whose logits are the soft labels; None: true labels
    regularised: bool = False  # whether dropout and stochastic depth are on


class Method(Protocol):
    """Chooses the paths of each step; everything random in it comes from `generator`, which is the step's own."""

    def paths(self, step: int, generator: np.random.Generator) -> list[Path]: ...


@dataclass(frozen=True)
class Sandwich:
    """The sandwich rule with in-place distillation (Yu & Huang 2019, arXiv 1903.05134, section 3; BigNAS, arXiv
    2003.11142, section 3.1): the largest subnet learns from the labels, regularised; then `random_subnets` random ones
    and the smallest learn from the largest's logits of the same step.
    """

    space: SearchSpace
    random_subnets: int = 2

    def __post_init__(self):
        if self.random_subnets < 0:
            raise ValueError(f"random_subnets is a number of subnets, 0 or more, not {self.random_subnets}")

    def paths(self, step: int, generator: np.random.Generator) -> list[Path]:
        others = [self.space.sample(generator) for _ in range(self.random_subnets)]
        return [
            Path(self.space.largest, regularised=True),
            *(Path(arch, teacher=0) for arch in [*others, self.space.smallest]),
        ]
