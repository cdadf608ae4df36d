"""Which subnets a training step runs, and what each of them learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from supernet.space import Arch, SearchSpace
from supernet.supernet import Supernet
from supernet.tasks import Task
from supernet.tasks.task import Output
from supernet.training import distributed
from supernet.training.data.batch import Batch
from supernet.training.methods.macs_bins import MacsBins


class Learner(NamedTuple):
    """One subnet's part in a step. Its loss is

        label_weight * task.loss(output, batch) + teacher_weight * task.distil(output, teacher's output, batch)

    and what companions add, if there are such, by their weights (`distill.accompanied.Beside`) times companion_weight.
    A learner of which the first two weights are 0 runs without gradient, to teach the learners after it.
    """

    arch: Arch
    # an earlier learner of this step, or the frozen network of `train`
    teacher: int | Literal["external"] | None = None
    label_weight: float = 1.0
    teacher_weight: float = 1.0  # unused without a teacher
    regularised: bool = False  # whether dropout and stochastic depth are on
    companion_weight: float = 1.0

    @property
    def has_gradient(self) -> bool:
        return self.label_weight != 0 or (self.teacher is not None and self.teacher_weight != 0)


def unscaled(loss: Tensor) -> Tensor:
    """`loss` itself, which is differentiated as it is but in fp16."""
    return loss


@dataclass(frozen=True)
class Step:
    """What a method may look at to choose the learners of a training step."""

    number: int  # counted from 0
    epoch: int  # counted from 0
    progress: float  # part of the training that is done, from 0 to below 1
    generator: np.random.Generator  # the step's own; all that is random in a method comes from it
    net: Supernet
    batch: Batch  # this process's part of the step's batch
    task: Task
    output: Callable[[Arch, Batch], Output]  # gives a subnet's output for a batch
    lr: float
    scale: Callable[[Tensor], Tensor] = unscaled  # gives what is to be differentiated in a loss's place
    part: SearchSpace | None = None  # of the method's space, what random subnets are drawn from; None for all of it

    def sample(self, space: SearchSpace) -> Arch:
        """A random subnet of the method's `space`, as this step draws them."""
        return (self.part or space).sample(self.generator)

    @torch.no_grad()
    def losses(self, archs: Sequence[Arch]) -> list[float]:
        """The validation loss of subnets on the joint batch of all processes."""
        losses = [self.task.validation_loss(self.output(arch, self.batch), self.batch) for arch in archs]
        return distributed.average(torch.stack(losses)).tolist()


class Method(Protocol):
    """Chooses the learners of each step, whose gradients are then added up for one update.

    It makes the same choice in every process, but for what it draws from a step's generator if that is each process's
    own (`TrainConfig.subnets_per_rank`); the number of learners is the same even then. It draws random subnets by
    `Step.sample`, so that their resolution may stay for several steps (`TrainConfig.resolution_steps`). A method that
    keeps something from step to step gives it in `state_dict`, as tensors and plain values, from which
    `load_state_dict` goes on.
    """

    space: SearchSpace  # of the architectures that the method trains

    def start_epoch(self, net: Supernet, companions: Sequence[Mapping[str, Tensor]], progress: float) -> None:
        """Called before an epoch's first step, whose `Step.progress` it gets. A method that reorders channels of `net`
        does the same to the `companions`: tensors by the names and in the shapes of the parameters, such as an
        optimizer's momentum."""

    def learners(self, step: Step) -> list[Learner]: ...

    def finish(self, step: Step, learners: Sequence[Learner], outputs: Sequence[Output]) -> None:
        """Called after a step with what its learners gave, without gradient."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


@dataclass(frozen=True)
class Sandwich(Method):
    """The sandwich rule with in-place distillation (Yu & Huang 2019, arXiv 1903.05134, section 3; BigNAS, arXiv
    2003.11142, section 3.1): the largest subnet learns from the labels, regularised; then `random_subnets` random ones
    and the smallest learn from the largest's output of the same step, and, with a `label_weight`, from the labels too.
    """

    space: SearchSpace
    random_subnets: int = 2
    label_weight: float = 0.0

    def learners(self, step: Step) -> list[Learner]:
        return self.around([step.sample(self.space) for _ in range(self.random_subnets)])

    def around(self, others: Sequence[Arch]) -> list[Learner]:
        """The largest, `others`, and the smallest."""
        return [
            Learner(self.space.largest, regularised=True),
            *(Learner(arch, teacher=0, label_weight=self.label_weight) for arch in [*others, self.space.smallest]),
        ]


@dataclass(frozen=True)
class Uniform(Method):
    """Single path, uniform (SPOS, Guo et al. 2020, arXiv 1904.00420, section 3.2): random subnets on the labels.

    The paper trains one subnet a step, and on its large spaces draws it from `bins`. With a `teacher_weight` the
    subnets learn from the frozen network of `train` as well.
    """

    space: SearchSpace
    subnets: int = 1
    teacher_weight: float = 0.0
    regularised: bool = False
    bins: MacsBins | None = None

    def learners(self, step: Step) -> list[Learner]:
        teacher = "external" if self.teacher_weight else None
        archs = [
            self.bins.sample(step.generator) if self.bins else step.sample(self.space) for _ in range(self.subnets)
        ]
        return [Learner(arch, teacher, 1.0, self.teacher_weight, self.regularised) for arch in archs]


@dataclass(frozen=True)
class Fair(Method):
    """Strict fairness (FairNAS, Chu et al. 2021, arXiv 1907.01845, section 3.2): one update trains each value of each
    choice equally often.

    As many subnets a step as the choice with the most values has; every choice goes through its values in a random
    order of its own. A choice with fewer values begins again, in another order, so it is fair over its own rounds.
    """

    space: SearchSpace

    def learners(self, step: Step) -> list[Learner]:
        counts = [len(choice.values) for choice in self.space.choices.values()]
        subnets = max(counts)
        columns = []
        for count in counts:
            rounds = [step.generator.permutation(count) for _ in range(-(-subnets // count))]
            columns.append(np.concatenate(rounds)[:subnets])
        return [Learner(arch) for arch in self.space.decode(np.stack(columns, axis=1))]


@dataclass(frozen=True)
class Attentive(Method):
    """Attentive sampling (AttentiveNAS, Wang et al. 2021, arXiv 2011.09011, section 3): the sandwich rule with subnets
    chosen among several of about the same MACs, by their loss on the batch.

    For each of the `random_subnets`, a MACs target is that of a random architecture, `trials` architectures are drawn
    within `macs_step` of the target, and the architecture of the smallest loss ("best", BestUp) or of the largest
    ("worst", WorstUp) is trained. The paper: 3 trials, 25 million MACs.
    """

    space: SearchSpace
    macs: Callable[[Arch], int]
    pick: Literal["best", "worst"]
    random_subnets: int = 2
    trials: int = 3
    macs_step: float = 25e6

    def learners(self, step: Step) -> list[Learner]:
        extreme = np.argmin if self.pick == "best" else np.argmax
        chosen = []
        for _ in range(self.random_subnets):
            candidates = self.candidates(step.generator)
            chosen.append(candidates[int(extreme(step.losses(candidates)))])
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
