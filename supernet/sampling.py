"""Which subnets a training step runs, and what each of them learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from supernet.space import Arch, SearchSpace

Judge = Callable[[Sequence[Arch]], Sequence[float]]  # losses of subnets on the labels of the step's batch


class Path(NamedTuple):
    """One subnet's part in a step."""

    arch: Arch
    teacher: int | None = None  # the earlier path of this step whose logits are the soft labels; None: true labels
    regularised: bool = False  # whether dropout and stochastic depth are on


class Method(Protocol):
    """Chooses the paths of each step, whose gradients are then added up for one update.

    Everything random in it comes from `generator`, which is the step's own. `judge` runs subnets without gradient.
    """

    def paths(self, generator: np.random.Generator, judge: Judge) -> list[Path]: ...


@dataclass(frozen=True)
class Sandwich:
    """The sandwich rule with in-place distillation (Yu & Huang 2019, arXiv 1903.05134, section 3; BigNAS, arXiv
    2003.11142, section 3.1): the largest subnet learns from the labels, regularised; then `random_subnets` random ones
    and the smallest learn from the largest's logits of the same step.
    """

    space: SearchSpace
    random_subnets: int = 2

    def paths(self, generator: np.random.Generator, judge: Judge) -> list[Path]:
        return self.around([self.space.sample(generator) for _ in range(self.random_subnets)])

    def around(self, others: Sequence[Arch]) -> list[Path]:
        """The largest, `others`, and the smallest."""
        return [
            Path(self.space.largest, regularised=True),
            *(Path(arch, teacher=0) for arch in [*others, self.space.smallest]),
        ]


@dataclass(frozen=True)
class Uniform:
    """Single path, uniform (SPOS, Guo et al. 2020, arXiv 1904.00420, section 3.2): random subnets on the labels.

    The paper trains one a step.
    """

    space: SearchSpace
    subnets: int = 1

    def paths(self, generator: np.random.Generator, judge: Judge) -> list[Path]:
        return [Path(self.space.sample(generator)) for _ in range(self.subnets)]


@dataclass(frozen=True)
class Fair:
    """Strict fairness (FairNAS, Chu et al. 2021, arXiv 1907.01845, section 3.2): one update trains each value of each
    choice equally often.

    As many subnets a step as the choice with the most values has; every choice goes through its values in a random
    order of its own. A choice with fewer values begins again, in another order, so it is fair over its own rounds.
    """

    space: SearchSpace

    def paths(self, generator: np.random.Generator, judge: Judge) -> list[Path]:
        counts = [len(choice.values) for choice in self.space.choices.values()]
        subnets = max(counts)
        columns = []
        for count in counts:
            rounds = [generator.permutation(count) for _ in range(-(-subnets // count))]
            columns.append(np.concatenate(rounds)[:subnets])
        return [Path(arch) for arch in self.space.decode(np.stack(columns, axis=1))]


@dataclass(frozen=True)
class Attentive:
    """Attentive sampling (AttentiveNAS, Wang et al. 2021, arXiv 2011.09011, section 3): the sandwich rule with subnets
    chosen among several of about the same MACs, by their loss on the batch.

    For each of the `random_subnets`, a MACs target is that of a random architecture, `trials` architectures are drawn
    within `macs_step` of it, and the one of the smallest loss ("best", BestUp) or of the largest ("worst", WorstUp) is
    trained. The paper: 3 trials, 25 million MACs.
    """

    space: SearchSpace
    macs: Callable[[Arch], int]
    pick: Literal["best", "worst"]
    random_subnets: int = 2
    trials: int = 3
    macs_step: float = 25e6

    def paths(self, generator: np.random.Generator, judge: Judge) -> list[Path]:
        extreme = np.argmin if self.pick == "best" else np.argmax
        chosen = []
        for _ in range(self.random_subnets):
            candidates = self.candidates(generator)
            chosen.append(candidates[int(extreme(judge(candidates)))])
        return Sandwich(self.space).around(chosen)

    def candidates(self, generator: np.random.Generator, draws: int = 1000) -> list[Arch]:
        """`trials` architectures in one bin of MACs; fewer where `draws` draws find no more."""
        candidates = [self.space.sample(generator)]
        target = self._bin(candidates[0])
        for _ in range(draws):
            if len(candidates) == self.trials:
                break
            arch = self.space.sample(generator)
            if self._bin(arch) == target and arch not in candidates:
                candidates.append(arch)
        return candidates

    def _bin(self, arch: Arch) -> int:
        return round(self.macs(arch) / self.macs_step)
