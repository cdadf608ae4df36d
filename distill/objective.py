"""A weighted sum of losses: on labels, also early in a network, on what a teacher answers and computes inside, and on
what peers answer.

What a network answers may be anything: the caller says how it is judged by labels, and how by another network's answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from distill.companions import Head, Hint, VariationalInformation, channels
from distill.features import attention_transfer, relational_angle, relational_distance, similarity_preserving
from distill.layers import recorded, stages
from distill.losses import adaptive_alpha_divergence, kl_divergence, mutual_learning
from distill.temporary import modes
from distill.untouched import untouched

# B batch, K classes

Output = Any  # a tree of tensors, such as logits [B, K]
Loss = Callable[[Output], Tensor]  # of what a network answers, by the labels: a scalar
# of what it answers and what another does: a scalar, with no gradient there
Distil = Callable[[Output, Output], Tensor]
FeatureLoss = Callable[[Tensor, Tensor], Tensor]  # a layer's outputs of student and teacher -> loss

FEATURE_LOSSES: Mapping[str, FeatureLoss] = {
    "attention": attention_transfer,
    "distance": relational_distance,
    "angle": relational_angle,
    "similarity": similarity_preserving,
}
CONNECTORS = {"hint": Hint, "vid": VariationalInformation}
"""Losses on features with something to learn: modules of the channels of student and teacher."""
BY_TEACHER = ("kl", "adaptive_alpha", *FEATURE_LOSSES, *CONNECTORS)
BY_HEADS = ("auxiliary", "self_distillation")


@dataclass(frozen=True)
class Objective:
    """The weight of every loss; those of weight 0 are not computed.

    By default the labels alone. Features are compared at `layers`. If none are named, attention is compared at every
    resolution that both networks have, and so are hint and vid, relations between images at the lowest of them
    (`distill.layers.stages`). Auxiliary heads are at `auxiliary_layers`, or else at every resolution but the first
    and the lowest: of a ResNet after each of its layers but the last.
    Connectors and heads are companions (`companions_of`): trained beside the network, and no part of it.
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
    hint: float = 0.0
    """Weight of the distance from the teacher's features (FitNets, arXiv 1412.6550)."""
    vid: float = 0.0
    """Weight of variational information distillation (arXiv 1904.05835)."""
    auxiliary: float = 0.0
    """Weight of the loss on the labels of each auxiliary head, such as 0.3 or 0.4."""
    self_distillation: float = 0.0
    """Weight of the KL divergence of each auxiliary head from the network's own soft targets, times temperature squared
    (arXiv 1905.08094)."""
    mutual: float = 0.0
    """Weight of the KL divergence from each peer's predictions, their mean over the peers (arXiv 1706.00384)."""
    slimming: float = 0.0
    """Weight of the sum of absolute scales of all BatchNorms (network slimming, arXiv 1708.06519); the authors take
    1e-4 for VGG on CIFAR-10, beside a weight decay of these scales that is not on here."""
    layers: tuple[tuple[str, str], ...] = ()
    """Pairs of modules to compare features at, the student's and the teacher's, such as blocks.4 layer3."""
    auxiliary_layers: tuple[str, ...] = ()
    """Modules that auxiliary heads see, such as blocks.2 blocks.4."""

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(tuple(pair) for pair in self.layers))
        object.__setattr__(self, "auxiliary_layers", tuple(self.auxiliary_layers))
        for name, weight in (*self._weights.items(), ("slimming", self.slimming)):
            if not 0 <= weight < float("inf"):
                raise ValueError(f"the weight {name} is 0 or more, not {weight}")
        if not any(self._weights[name] for name in ("labels", *BY_TEACHER)):
            raise ValueError(
                "there is nothing to learn from: one of the losses besides mutual and those of auxiliary heads needs a "
                "weight above 0"
            )
        if self.auxiliary_layers and not self.has_heads:
            raise ValueError("auxiliary heads without a weight: set auxiliary or self_distillation above 0")
        if not self.temperature > 0:
            raise ValueError(f"the temperature is above 0, not {self.temperature}")

    @property
    def needs_teacher(self) -> bool:
        return any(self._weights[name] for name in BY_TEACHER)

    @property
    def has_heads(self) -> bool:
        """Whether there are auxiliary heads."""
        return any(self._weights[name] for name in BY_HEADS)

    @property
    def has_companions(self) -> bool:
        """Whether something is trained beside the network."""
        return self.has_heads or any(self._weights[name] for name in CONNECTORS)

    @property
    def total_weight(self) -> float:
        """The sum of all weights."""
        return sum(self._weights.values())

    @property
    def feature_losses(self) -> dict[str, float]:
        """The weights above 0 of losses on features."""
        return {name: self._weights[name] for name in (*FEATURE_LOSSES, *CONNECTORS) if self._weights[name]}

    @property
    def _weights(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("labels", *BY_TEACHER, *BY_HEADS, "mutual")}


class Pairs(NamedTuple):
    """Modules of student and teacher whose outputs are compared."""

    positions: tuple[tuple[str, str], ...]
    relations: tuple[tuple[str, str], ...]  # between images

    def of(self, loss: str) -> tuple[tuple[str, str], ...]:
        return self.positions if loss in ("attention", *CONNECTORS) else self.relations


def layer_pairs(objective: Objective, student: nn.Module, teacher: nn.Module) -> Pairs:
    """Where `objective` compares features; ValueError if the networks have no resolution in common."""
    if objective.layers or not objective.feature_losses:
        return Pairs(objective.layers, objective.layers)
    own, taught = stages(student), stages(teacher)
    common = tuple((own[reduction], taught[reduction]) for reduction in sorted(own.keys() & taught.keys()))
    if not common:
        raise ValueError(
            f"{type(student).__name__} has features at 1/{sorted(own)} of the image and {type(teacher).__name__} at "
            f"1/{sorted(taught)}: name the modules to compare"
        )
    return Pairs(common, common[-1:])


class Losses(NamedTuple):
    total: Tensor  # weighted sum, with a gradient
    parts: dict[str, Tensor]  # of each loss before its weight, detached; [N] for N networks


def head_layers(objective: Objective, student: nn.Module) -> tuple[str, ...]:
    """The modules that auxiliary heads see; ValueError if none are named and the network has a single resolution."""
    if objective.auxiliary_layers or not objective.has_heads:
        return objective.auxiliary_layers
    if len(found := stages(student)) < 2:
        raise ValueError(
            f"{type(student).__name__} has features at one resolution: name the modules of auxiliary heads"
        )
    first = 1 if len(found) > 2 else 0
    return tuple(found[reduction] for reduction in sorted(found)[first:-1])


def companions_of(
    objective: Objective, student: nn.Module, inputs: tuple, teacher: nn.Module | None = None
) -> nn.ModuleDict:
    """What `objective` trains beside `student`, with fresh weights: connectors by the names of their losses, one a pair
    of layers, and `heads`; empty if that is nothing.

    `inputs`, of a few examples, tell how large features are. ValueError if features or answers are of another form.
    """
    if not objective.has_companions:
        return nn.ModuleDict()
    pairs = Pairs((), ()) if teacher is None else layer_pairs(objective, student, teacher)
    heads = head_layers(objective, student)
    connected = [name for name in objective.feature_losses if name in CONNECTORS]
    named = {pair for name in connected for pair in pairs.of(name)}
    of_student, output = _features(student, inputs, {*heads, *(own for own, _ in named)})
    of_teacher = {} if teacher is None else _features(teacher, inputs, {other for _, other in named})[0]
    companions = {
        name: nn.ModuleList(
            CONNECTORS[name](channels(of_student[own]), channels(of_teacher[other])) for own, other in pairs.of(name)
        )
        for name in connected
    }
    if heads:
        if not isinstance(output, Tensor) or output.dim() != 2:
            raise ValueError(
                f"auxiliary heads are for classifiers, whose answers are [B, K]; {type(student).__name__}'s are not"
            )
        companions["heads"] = nn.ModuleList(Head(channels(of_student[name]), output.shape[1]) for name in heads)
    return nn.ModuleDict(companions)


def _features(network: nn.Module, inputs: tuple, names: Iterable[str]) -> tuple[dict[str, Tensor], Output]:
    """What the named modules put out, and the answer, with the network in eval mode meanwhile."""
    with torch.no_grad(), modes(network, lambda module: False), recorded(network, names) as features:
        output = untouched(network, *inputs)
    return features, output


def objective_losses(
    objective: Objective,
    student: nn.Module,
    inputs: tuple,
    loss: Loss,
    teacher: nn.Module | None = None,
    distil: Distil | None = None,
    companions: nn.ModuleDict | None = None,
) -> Losses:
    """The losses of `student` on a batch, and their sum by the weights of `objective`.

    sum over losses of weight * loss; a loss on features is the sum over the pairs of layers. The student is called with
    `inputs`, images [B, C, H, W] for example, and judged by `loss`, such as
    `functools.partial(F.cross_entropy, target=labels)`. The teacher is called with the same inputs, without gradient,
    in the mode that it is in. Answers that are no logits [B, K] are compared by `distil`, which then is the loss kl,
    adaptive_alpha and mutual. `companions` are those that `companions_of` made. ValueError if `objective` needs a
    teacher, peers or companions and there are none, or if logits or features do not match.
    """
    return cohort_losses(
        objective, [student], [inputs], loss, teacher, distil, None if companions is None else [companions]
    )


def cohort_losses(
    objective: Objective,
    students: Sequence[nn.Module],
    inputs: Sequence[tuple],
    loss: Loss,
    teacher: nn.Module | None = None,
    distil: Distil | None = None,
    companions: Sequence[nn.ModuleDict] | None = None,
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
        companions = [nn.ModuleDict()] * len(students)
    compare = _on_logits(objective) if distil is None else dict.fromkeys(("kl", "adaptive_alpha", "mutual"), distil)
    found = [
        _own_losses(objective, student, own, loss, teacher, compare, beside)
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
    companions: nn.ModuleDict,
) -> _OwnLosses:
    """What `student` learns without peers."""
    if teacher is None and objective.needs_teacher:
        raise ValueError("these losses need a teacher: give one, or set their weights to 0")
    pairs = Pairs((), ()) if teacher is None else layer_pairs(objective, student, teacher)
    heads = head_layers(objective, student)
    compared = {pair for name in objective.feature_losses for pair in pairs.of(name)}
    with recorded(student, {*heads, *(own for own, _ in compared)}) as of_student:
        output = _in_float32(untouched(student, *inputs))
    taught, of_teacher = None, {}
    if teacher is not None:
        with torch.no_grad(), recorded(teacher, {other for _, other in compared}) as of_teacher:
            taught = _in_float32(untouched(teacher, *inputs))
    losses: dict[str, Tensor] = {}
    if objective.labels:
        losses["labels"] = loss(output)
    for name in ("kl", "adaptive_alpha"):
        if getattr(objective, name):
            losses[name] = compare[name](output, taught)
    for name in objective.feature_losses:
        functions = companions[name] if name in CONNECTORS else itertools.repeat(FEATURE_LOSSES[name])
        found = [
            function(of_student[own], of_teacher[other]) for function, (own, other) in zip(functions, pairs.of(name))
        ]
        losses[name] = torch.stack(found).sum()
    answers = [head(of_student[name]) for head, name in zip(companions["heads"], heads)] if heads else []
    if objective.auxiliary:
        losses["auxiliary"] = torch.stack([loss(answer) for answer in answers]).sum()
    if objective.self_distillation:
        own = [kl_divergence(answer, output.detach(), objective.temperature) for answer in answers]
        losses["self_distillation"] = torch.stack(own).sum()
    return _OwnLosses(losses, output)


def _in_float32(output: Output) -> Output:
    return tree_map_only(Tensor, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor, output)
