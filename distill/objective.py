"""A weighted sum of losses: on labels, also early in a network, on what a teacher answers and computes inside, and on
what peers answer.

What a network answers may be anything: the caller says how it is judged by labels, and how by another network's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from distill.accompanied import (
    BY_HEADS,
    CONNECTORS,
    Beside,
    Companions,
    Loss,
    Output,
    Pairs,
    check_weight,
    layer_pairs,
)
from distill.features import attention_transfer, relational_angle, relational_distance, similarity_preserving
from distill.layers import recorded
from distill.losses import adaptive_alpha_divergence, kl_divergence, mutual_learning
from distill.untouched import untouched

# B batch, K classes

# of what it answers and what another does: a scalar, with no gradient there
Distil = Callable[[Output, Output], Tensor]
FeatureLoss = Callable[[Tensor, Tensor], Tensor]  # a layer's outputs of student and teacher -> loss

FEATURE_LOSSES: Mapping[str, FeatureLoss] = {
    "attention": attention_transfer,
    "distance": relational_distance,
    "angle": relational_angle,
    "similarity": similarity_preserving,
}
BY_TEACHER = ("kl", "adaptive_alpha", *FEATURE_LOSSES, *CONNECTORS)


@dataclass(frozen=True)
class Objective(Beside):
    """The weight of every loss; those of weight 0 are not computed.

    By default the labels alone. Features are compared at `layers`; if none are named, attention as those of companions
    are (`Beside`), and relations between images at the lowest resolution that both networks have.
    """

    labels: float = 1.0
    """Weight of the loss on the labels: of a classifier the cross-entropy."""
    kl: float = 0.0
    """Weight of the KL divergence from the teacher's soft targets (arXiv 1503.02531), times temperature squared; of a
    network that is no classifier, of its own way to learn from a teacher."""
    temperature: float = 4.0
    """Temperature of these soft targets."""
    adaptive_alpha: float = 0.0
    """Weight of AlphaNet's adaptive alpha-divergence (arXiv 2102.07954); of a network that is no classifier, as for
    kl."""
    attention: float = 0.0
    """Weight of attention transfer (arXiv 1612.03928); the authors take 1000."""
    distance: float = 0.0
    """Weight of relational distillation of distances (arXiv 1904.05068); the authors take 25."""
    angle: float = 0.0
    """Weight of relational distillation of angles (arXiv 1904.05068); the authors take 50."""
    similarity: float = 0.0
    """Weight of similarity-preserving distillation (arXiv 1907.09682); the authors take 3000."""
    mutual: float = 0.0
    """Weight of the KL divergence from each peer's predictions, their mean over the peers (arXiv 1706.00384)."""
    slimming: float = 0.0
    """Weight of the sum of absolute scales of all BatchNorms (network slimming, arXiv 1708.06519); the authors take
    1e-4 for VGG on CIFAR-10, beside a weight decay of these scales that is not on here."""

    def __post_init__(self):
        super().__post_init__()
        for name, weight in (*self._weights.items(), ("slimming", self.slimming)):
            check_weight(name, weight)
        if not any(self._weights[name] for name in ("labels", *BY_TEACHER)):
            raise ValueError(
                "there is nothing to learn from: one of the losses besides mutual and those of auxiliary heads needs a "
                "weight above 0"
            )
        if not self.temperature > 0:
            raise ValueError(f"the temperature is above 0, not {self.temperature}")

    @property
    def needs_teacher(self) -> bool:
        return any(self._weights[name] for name in BY_TEACHER)

    @property
    def total_weight(self) -> float:
        """The sum of all weights."""
        return sum(self._weights.values())

    @property
    def feature_losses(self) -> tuple[str, ...]:
        """The losses on features with a weight above 0, but for those by connectors."""
        return tuple(name for name in FEATURE_LOSSES if self._weights[name])

    @property
    def by_features(self) -> tuple[str, ...]:
        """All losses with a weight above 0 on a teacher's features."""
        return (*self.feature_losses, *self.connectors)

    @property
    def _weights(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("labels", *BY_TEACHER, *BY_HEADS, "mutual")}


class Losses(NamedTuple):
    total: Tensor  # weighted sum, with a gradient
    parts: dict[str, Tensor]  # of each loss before its weight, detached; [N] for N networks


def objective_losses(
    objective: Objective,
    student: nn.Module,
    inputs: tuple,
    loss: Loss,
    teacher: nn.Module | None = None,
    distil: Distil | None = None,
    companions: Companions | None = None,
    second_labels: Tensor | None = None,
) -> Losses:
    """The losses of `student` on a batch, and their sum by the weights of `objective`.

    sum over losses of weight * loss; a loss on features is the sum over the pairs of layers. The student is called with
    `inputs`, images [B, C, H, W] for example, and judged by `loss`, such as
    `functools.partial(F.cross_entropy, target=labels)`. The teacher is called with the same inputs, without gradient,
    in the mode that it is in. Answers that are no logits [B, K] are compared by `distil`, which then is the loss kl,
    adaptive_alpha and mutual. `companions` are those that `distill.accompanied.companions_of` made, `second_labels` [B]
    those of a second task. ValueError if `objective` needs a teacher, peers or companions and there are none, or if
    logits or features do not match.
    """
    return cohort_losses(
        objective,
        [student],
        [inputs],
        loss,
        teacher,
        distil,
        None if companions is None else [companions],
        second_labels,
    )


def cohort_losses(
    objective: Objective,
    students: Sequence[nn.Module],
    inputs: Sequence[tuple],
    loss: Loss,
    teacher: nn.Module | None = None,
    distil: Distil | None = None,
    companions: Sequence[Companions] | None = None,
    second_labels: Tensor | None = None,
) -> Losses:
    """The losses of N networks that train side by side. Each has those of `objective_losses`, and by its peers

        mutual / (N - 1) * sum over peers of KL(p_peer || p_own)

    The total is the sum over networks. Peers are detached, so that each has the gradient of its own losses: deep mutual
    learning (Zhang et al., arXiv 1706.00384, equations 5 and 6). The paper's algorithm 1 updates one network after the
    other and asks each for its predictions again after its update, for the others to learn from. Here all learn from
    the same forward pass and are updated at once, so that the order favours none and nothing runs twice.

    `inputs` are what each network is called with, the same batch in the size of each; the teacher runs on all of them.
    The part mutual is the sum over networks, auxiliary and self_distillation are sums over a network's heads. Raises
    what `objective_losses` does.
    """
    if companions is None:
        if objective.has_companions:
            raise ValueError("these losses need companions: give those that companions_of makes")
        companions = [Companions()] * len(students)
    compare = _on_logits(objective) if distil is None else dict.fromkeys(("kl", "adaptive_alpha", "mutual"), distil)
    found = [
        _own_losses(objective, student, own, loss, teacher, compare, beside, second_labels)
        for student, own, beside in zip(students, inputs, companions)
    ]
    losses = {name: torch.stack([own.losses[name] for own in found]) for name in found[0].losses}
    if objective.mutual:
        losses["mutual"] = mutual_learning([own.output for own in found], compare["mutual"])
    total = torch.stack([getattr(objective, name) * part.sum() for name, part in losses.items()]).sum()
    return Losses(total, {name: part.detach().squeeze(0) for name, part in losses.items()})


def _on_logits(objective: Objective) -> dict[str, Distil]:
    """How logits are compared with another network's, by the names of the losses."""
    return {
        "kl": partial(kl_divergence, temperature=objective.temperature),
        "adaptive_alpha": adaptive_alpha_divergence,
        "mutual": kl_divergence,
    }


class _OwnLosses(NamedTuple):
    losses: dict[str, Tensor]  # each before its weight
    output: Output


def _own_losses(
    objective: Objective,
    student: nn.Module,
    inputs: tuple,
    loss: Loss,
    teacher: nn.Module | None,
    compare: Mapping[str, Distil],
    companions: Companions,
    second_labels: Tensor | None,
) -> _OwnLosses:
    """What `student` learns without peers."""
    if teacher is None and objective.needs_teacher:
        raise ValueError("these losses need a teacher: give one, or set their weights to 0")
    pairs = Pairs((), ())
    if teacher is not None and objective.feature_losses:
        pairs = layer_pairs(objective, student, teacher)
    compared = {name: pairs.positions if name == "attention" else pairs.relations for name in objective.feature_losses}
    named = {pair for those in compared.values() for pair in those}
    with recorded(student, {*companions.student_layers, *(own for own, _ in named)}) as of_student:
        output = _in_float32(untouched(student, *inputs))
    taught, of_teacher = None, None
    if teacher is not None:
        with (
            torch.no_grad(),
            recorded(teacher, {*companions.teacher_layers, *(other for _, other in named)}) as of_teacher,
        ):
            taught = _in_float32(untouched(teacher, *inputs))
    losses: dict[str, Tensor] = {}
    if objective.labels:
        losses["labels"] = loss(output)
    for name in ("kl", "adaptive_alpha"):
        if getattr(objective, name):
            losses[name] = compare[name](output, taught)
    for name, those in compared.items():
        found = [FEATURE_LOSSES[name](of_student[own], of_teacher[other]) for own, other in those]
        losses[name] = torch.stack(found).sum()
    losses |= companions.losses(output, loss, of_student, of_teacher, second_labels, objective.temperature)
    return _OwnLosses(losses, output)


def _in_float32(output: Output) -> Output:
    return tree_map_only(Tensor, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor, output)
