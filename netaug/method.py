"""A step of NetAug: the tiny model, and one of the wider networks that it is a part of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from supernet.channels import Channels
from supernet.channels.importance import order_channels
from supernet.space import Arch, SearchSpace
from supernet.supernet import Supernet
from supernet.training.methods.sampling import Learner, Method, Step


@dataclass(frozen=True)
class NetAug(Method):
    """Train the smallest subnet of `space` with help of the others (Cai et al., arXiv 2110.08890, equation 2):

        L(tiny) + weight * L(sampled),  L = label_weight * cross-entropy + teacher_weight * distillation

    and what companions add to L, if there are such. With `by_features` they compare features with the external
    teacher's, whatever `teacher_weight` is. The second network is drawn anew every step; both start from the same
    weights, and gradients add up. From the part `width_until` of the training on, widths are those of the tiny model
    and only expansions are drawn. Until then the channels `sorted_channels`, those inside blocks, are put in the order
    of their importance before every epoch, so that the tiny model keeps those whose outgoing weights have the largest
    sum of absolute values. Both as in the authors' code. With a `weight` of 0 the tiny model is trained alone.
    """

    space: SearchSpace
    sorted_channels: Sequence[Channels] = ()
    weight: float = 1.0
    width_until: float = 0.5
    label_weight: float = 1.0
    teacher_weight: float = 0.0
    by_features: bool = False

    @cached_property
    def narrow(self) -> SearchSpace:
        """The networks as wide as the tiny model."""
        widths = {name: c.values[:1] for name, c in self.space.choices.items() if name.endswith(".width")}
        return self.space.restrict(widths)

    @cached_property
    def tiny(self) -> Arch:
        return self.space.smallest

    def start_epoch(self, net: Supernet, companions: Sequence[Mapping[str, Tensor]], progress: float) -> None:
        if self.weight and progress < self.width_until:
            order_channels(net, self.sorted_channels, "outgoing_l1", companions)

    def learners(self, step: Step) -> list[Learner]:
        learners = [self._learner(self.tiny, 1.0)]
        if self.weight:
            space = self.space if step.progress < self.width_until else self.narrow
            learners.append(self._learner(space.sample(step.generator), self.weight))
        return learners

    def _learner(self, arch: Arch, weight: float) -> Learner:
        teacher = "external" if self.teacher_weight or self.by_features else None
        return Learner(arch, teacher, weight * self.label_weight, weight * self.teacher_weight, True, weight)
