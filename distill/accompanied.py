"""What a network learns by companions: connectors to a teacher's features, heads early in it, one for a second task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.companions import Head, Hint, VariationalInformation, channels
from distill.layers import outermost, recorded, stages
from distill.losses import kl_divergence
from distill.temporary import modes
from distill.untouched import untouched

# B batch, K classes

Output = Any  # a tree of tensors, such as logits [B, K]
Loss = Callable[[Output], Tensor]  # of what a network answers, by the labels: a scalar

CONNECTORS = {"hint": Hint, "vid": VariationalInformation}
"""Losses on features with something to learn: modules of the channels of student and teacher."""
BY_HEADS = ("auxiliary", "self_distillation", "second_task")
UNLABELLED = -1
"""The label, of a second task, of an image that has none."""


@dataclass(frozen=True)
class Beside:
    """The weights of losses that companions give: modules trained beside a network, and no part of it.

    Those of weight 0 are not there. Features are compared with a teacher's at `layers`, or else at every resolution
    that both networks have (`distill.layers.stages`). Auxiliary heads are at `auxiliary_layers`, or else at every
    resolution but the first and the lowest: of a ResNet after each of its layers but the last.
    """

    hint: float = 0.0
    """Weight of the distance from the teacher's features (FitNets, arXiv 1412.6550)."""
    vid: float = 0.0
    """Weight of variational information distillation (arXiv 1904.05835)."""
    auxiliary: float = 0.0
    """Weight of the loss on the labels of each auxiliary head, such as 0.3 or 0.4."""
    self_distillation: float = 0.0
    """Weight of the KL divergence of each auxiliary head from the network's own soft targets, times temperature squared
    (arXiv 1905.08094)."""
    second_task: float = 0.0
    """Weight of the cross-entropy of a head that tells the classes of second_labels apart: multi-task supervision."""
    layers: tuple[tuple[str, str], ...] = ()
    """Pairs of modules to compare features at, the student's and the teacher's, such as blocks.4 layer3."""
    auxiliary_layers: tuple[str, ...] = ()
    """Modules that auxiliary heads see, such as blocks.2 blocks.4."""
    second_task_layer: str | None = None
    """Module that the head of the second task sees; by default the last one of the lowest resolution."""

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(tuple(pair) for pair in self.layers))
        object.__setattr__(self, "auxiliary_layers", tuple(self.auxiliary_layers))
        for name in (*CONNECTORS, *BY_HEADS):
            check_weight(name, getattr(self, name))
        if self.auxiliary_layers and not self.has_auxiliary_heads:
            raise ValueError("auxiliary heads without a weight: set auxiliary or self_distillation above 0")
        if self.second_task_layer is not None and not self.second_task:
            raise ValueError("a layer for a second task without a weight: set second_task above 0")

    @property
    def connectors(self) -> tuple[str, ...]:
        """The losses with a weight above 0 by connectors to a teacher."""
        return tuple(name for name in CONNECTORS if getattr(self, name))

    @property
    def has_auxiliary_heads(self) -> bool:
        return bool(self.auxiliary or self.self_distillation)

    @property
    def has_heads(self) -> bool:
        """Whether there are heads: auxiliary ones, or that of a second task."""
        return any(getattr(self, name) for name in BY_HEADS)

    @property
    def has_companions(self) -> bool:
        """Whether something is trained beside the network."""
        return self.has_heads or bool(self.connectors)

    @property
    def companions_weight(self) -> float:
        """The sum of the weights of all losses by companions."""
        return sum(getattr(self, name) for name in (*CONNECTORS, *BY_HEADS))


def check_weight(name: str, weight: float) -> None:
    """ValueError for what is no weight of a loss."""
    if not 0 <= weight < float("inf"):
        raise ValueError(f"the weight {name} is 0 or more, not {weight}")


ALONE = Beside()


class Companions(nn.ModuleDict):
    """What is trained beside a network: connectors by the names of their losses, one a pair of layers, `heads`, and
    `second_task`, the head of a second task. Made by `companions_of`."""

    def __init__(
        self,
        beside: Beside = ALONE,
        modules: Mapping[str, nn.Module] | None = None,
        pairs: tuple[tuple[str, str], ...] = (),
        heads: tuple[str, ...] = (),
        second: str | None = None,
        of_subnets: bool = False,
    ) -> None:
        super().__init__(modules)
        self.beside, self._of_subnets = beside, of_subnets
        self._pairs, self._heads, self._second = pairs, heads, second

    @property
    def student_layers(self) -> set[str]:
        """The modules of the network whose outputs `losses` takes."""
        return {*(own for own, _ in self._pairs), *self._heads, *([] if self._second is None else [self._second])}

    @property
    def teacher_layers(self) -> set[str]:
        """The modules of a teacher whose outputs `losses` takes."""
        return {other for _, other in self._pairs}

    def losses(
        self,
        output: Output,
        loss: Loss,
        of_student: Mapping[str, Tensor],
        of_teacher: Mapping[str, Tensor] | None = None,
        second_labels: Tensor | None = None,
        temperature: float = 1.0,
    ) -> dict[str, Tensor]:
        """Each loss before its weight, by name: its sum over the places where it is, 0 if there is none.

        `output` is the network's answer, `loss` judges a head's, `of_student` and `of_teacher` are what the layers put
        out; layers that a network lacks are left out, and connectors where there is no teacher. `second_labels` [B] are
        those of the second task, `UNLABELLED` where there are none. `temperature` is that of self-distillation.
        """
        found: dict[str, list[Tensor]] = {}
        if of_teacher is not None:
            for name in self.beside.connectors:
                found[name] = [
                    connect(of_student[own], self._fitting(of_teacher[other], of_student[own]))
                    for connect, (own, other) in zip(self[name], self._pairs)
                    if own in of_student and other in of_teacher
                ]
        heads = self["heads"] if self._heads else ()
        answers = [head(of_student[name]) for head, name in zip(heads, self._heads) if name in of_student]
        if self.beside.auxiliary:
            found["auxiliary"] = [loss(answer) for answer in answers]
        if self.beside.self_distillation:
            found["self_distillation"] = [kl_divergence(answer, output.detach(), temperature) for answer in answers]
        if self._second is not None:
            if second_labels is None:
                raise ValueError("a second task needs labels of its own: name them as second_labels")
            found["second_task"] = [second_task_loss(self["second_task"](of_student[self._second]), second_labels)]
        nothing = next(self.parameters()).new_zeros(()) if found else None
        return {name: torch.stack(those).sum() if those else nothing for name, those in found.items()}

    def _fitting(self, taught: Tensor, own: Tensor) -> Tensor:
        """A teacher's features, for a subnet averaged over the positions that fall together in its smaller ones."""
        if self._of_subnets and taught.dim() == own.dim() == 4 and taught.shape[2:] != own.shape[2:]:
            return F.adaptive_avg_pool2d(taught.detach(), own.shape[2:])
        return taught


def second_task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of logits [B, K] in the mean over the images that have a label of [B]; 0 if none has."""
    total = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum")
    return total / (labels != UNLABELLED).sum().clamp(min=1)


class Pairs(NamedTuple):
    """Modules of student and teacher whose outputs are compared."""

    positions: tuple[tuple[str, str], ...]
    relations: tuple[tuple[str, str], ...]  # between images


def layer_pairs(beside: Beside, student: nn.Module, teacher: nn.Module) -> Pairs:
    """Where features are compared; ValueError if the networks have no resolution in common."""
    if beside.layers:
        return Pairs(beside.layers, beside.layers)
    own, taught = stages(student), stages(teacher)
    common = tuple((own[reduction], taught[reduction]) for reduction in sorted(own.keys() & taught.keys()))
    if not common:
        raise ValueError(
            f"{type(student).__name__} has features at 1/{sorted(own)} of the image and {type(teacher).__name__} at "
            f"1/{sorted(taught)}: name the modules to compare"
        )
    return Pairs(common, common[-1:])


def head_layers(beside: Beside, student: nn.Module) -> tuple[str, ...]:
    """The modules that auxiliary heads see; ValueError if none are named and the network has a single resolution."""
    if beside.auxiliary_layers or not beside.has_auxiliary_heads:
        return beside.auxiliary_layers
    if len(found := stages(student)) < 2:
        raise ValueError(
            f"{type(student).__name__} has features at one resolution: name the modules of auxiliary heads"
        )
    first = 1 if len(found) > 2 else 0
    return tuple(found[reduction] for reduction in sorted(found)[first:-1])


def second_layer(beside: Beside, student: nn.Module) -> str | None:
    """The module that the head of a second task sees, None without such a task."""
    if beside.second_task_layer is not None or not beside.second_task:
        return beside.second_task_layer
    found = stages(student)
    return found[max(found)]


def companions_of(
    beside: Beside,
    student: nn.Module,
    inputs: tuple,
    teacher: nn.Module | None = None,
    *,
    second_classes: int = 0,
    of_subnets: bool = False,
) -> Companions:
    """What `beside` trains beside `student`, with fresh weights; none if that is nothing.

    `inputs`, of a few examples, tell how large features are, `second_classes` how many classes the second task has.
    With `of_subnets` the student is the largest subnet of a supernet; smaller subnets may have smaller images, and a
    module that ends a sequence is known as that sequence, which they have as well. ValueError if features or answers
    are of another form, and for a second task without labels.
    """
    if not beside.has_companions:
        return Companions()
    pairs = layer_pairs(beside, student, teacher).positions if teacher is not None and beside.connectors else ()
    heads, second = head_layers(beside, student), second_layer(beside, student)
    if of_subnets:
        pairs = tuple((outermost(student, own), outermost(teacher, other)) for own, other in pairs)
        heads = tuple(outermost(student, name) for name in heads)
        second = None if second is None else outermost(student, second)
    made = Companions(beside, None, pairs, heads, second, of_subnets)
    of_student, output = _features(student, inputs, made.student_layers)
    of_teacher = {} if teacher is None else _features(teacher, inputs, made.teacher_layers)[0]
    if pairs:
        for name in beside.connectors:
            sizes = [(channels(of_student[own]), channels(of_teacher[other])) for own, other in pairs]
            made[name] = nn.ModuleList(CONNECTORS[name](*size) for size in sizes)
    if heads:
        if not isinstance(output, Tensor) or output.dim() != 2:
            raise ValueError(
                f"auxiliary heads are for classifiers, whose answers are [B, K]; {type(student).__name__}'s are not"
            )
        made["heads"] = nn.ModuleList(Head(channels(of_student[name]), output.shape[1]) for name in heads)
    if second is not None:
        if second_classes < 2:
            raise ValueError("a second task needs labels of two classes at least: name them as second_labels")
        made["second_task"] = Head(channels(of_student[second]), second_classes)
    return made


def _features(network: nn.Module, inputs: tuple, names: Iterable[str]) -> tuple[dict[str, Tensor], Output]:
    """What the named modules put out, and the answer, with the network in eval mode meanwhile."""
    with torch.no_grad(), modes(network, lambda module: False), recorded(network, names) as features:
        output = untouched(network, *inputs)
    if missing := sorted({*names} - features.keys()):
        raise ValueError(f"{type(network).__name__} does not call its module {missing[0]!r}: name another")
    return features, output
