"""Which mixture of a teacher's layers teaches best: differentiable feature aggregation (DFA).

Guan et al., *Differentiable feature aggregation search for knowledge distillation*, ECCV 2020, arXiv 2008.00506. A
*group* are the layers of a teacher with outputs of one size, such as the blocks between two strides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.companions import Hint, channels, channels_last
from distill.layers import recorded, stages
from distill.temporary import hooks, modes
from distill.untouched import untouched

# B batch, C channels

Loss = Callable[[Any], Tensor]  # of what a network answers, by the labels
Example = tuple[tuple, Loss]  # what a network is called with, and how it is judged


class Group(NamedTuple):
    """Layers of a teacher, and the layer of a student that learns from their mixture."""

    student: str
    teacher: tuple[str, ...]  # in the order of the computation, the last one last


def groups_of(student: nn.Module, teacher: nn.Module, inputs: tuple) -> tuple[Group, ...]:
    """A group for each resolution that both networks have: of the teacher the blocks before the last one of it, within
    one `nn.Sequential` or `nn.ModuleList`, whose outputs are of the same shape.

    `inputs`, of a few examples, tell the shapes. ValueError for networks that do not say where their features are
    (`distill.layers.stages`), or that have no resolution in common.
    """
    own, taught = stages(student), stages(teacher)
    common = sorted(own.keys() & taught.keys())
    if not common:
        raise ValueError(f"the student has features at 1/{sorted(own)} of the image, the teacher at 1/{sorted(taught)}")
    modules = dict(teacher.named_modules())
    candidates = {reduction: _beside(modules, taught[reduction]) for reduction in common}
    names = {name for names in candidates.values() for name in names}
    with torch.no_grad(), modes(teacher, lambda module: False), recorded(teacher, names) as found:
        untouched(teacher, *inputs)
    shape = {name: tensor.shape for name, tensor in found.items() if isinstance(tensor, Tensor)}
    return tuple(
        Group(own[r], tuple(name for name in candidates[r] if shape.get(name) == shape[candidates[r][-1]]))
        for r in common
    )


def _beside(modules: dict[str, nn.Module], end: str) -> list[str]:
    """The blocks up to the module `end`, which is the last of them or what holds them."""
    inside = isinstance(modules[end], nn.Sequential | nn.ModuleList) and len(modules[end])
    folder = end if inside else end.rpartition(".")[0]
    if not isinstance(modules[folder], nn.Sequential | nn.ModuleList):
        return [end]
    names = [f"{folder}.{name}" for name, _ in modules[folder].named_children()]
    return names if inside else names[: names.index(end) + 1]


class Mixture(nn.Module):
    """sum_j w_j T_j of features T_j of one shape; `weights` [J] are not trained."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights.detach().clone())

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return mixed(features, self.weights)


def mixed(features: Sequence[Tensor], weights: Tensor) -> Tensor:
    """sum_j w_j T_j, where a weight of 0 leaves out its term."""
    terms = [weight * feature for weight, feature in zip(weights, features, strict=True) if weight != 0]
    return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]


class AggregatedTeacher(nn.Module):
    """A teacher that also puts out, as the module `mixtures.i`, the mixture of its i-th group: features like any other
    layer's, for losses on features (`layers` of `distill.objective.Objective`). It answers as the teacher does."""

    def __init__(self, teacher: nn.Module, groups: Sequence[Group], weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.teacher = teacher
        self.groups = tuple(groups)
        self.mixtures = nn.ModuleList(map(Mixture, weights))

    @property
    def layers(self) -> tuple[tuple[str, str], ...]:
        """Pairs of the student's layers and those of this module that teach them."""
        return tuple((group.student, f"mixtures.{index}") for index, group in enumerate(self.groups))

    def forward(self, *inputs: Any) -> Any:
        with recorded(self.teacher, {name for group in self.groups for name in group.teacher}) as found:
            output = self.teacher(*inputs)
        for group, mixture in zip(self.groups, self.mixtures):
            mixture([found[name] for name in group.teacher])
        return output


def last_weights(group: Group) -> Tensor:
    """All weight on the last layer: what distillation by features does otherwise."""
    return F.one_hot(torch.tensor(len(group.teacher) - 1), len(group.teacher)).float()


def average_weights(group: Group) -> Tensor:
    """Equal weights."""
    return torch.full((len(group.teacher),), 1 / len(group.teacher))


@dataclass(frozen=True)
class AggregationConfig:
    """How weights are searched."""

    lr: float = 0.05
    """Learning rate of the student, by SGD with a momentum of 0.9."""
    weights_lr: float = 0.01
    """Learning rate of the weights and the connectors of the bridge, by Adam."""
    hint: float = 1.0
    """gamma, the weight of the features in what the student learns."""
    informative: float = 1.0
    """gamma_TS, the weight of how well the student's later layers tell classes by the mixture."""
    learnable: float = 1.0
    """gamma_ST, the weight of how well the student's features predict the mixture."""


class Bridge(nn.Module):
    """The loss that weights are searched by, of one group:

        gamma_TS * L(student from the group's layer on, given TS(A))  +  gamma_ST * mean (A - ST(S))^2

    with A = sum_j softmax(beta)_j T_j, S the student's layer, and linear connectors TS and ST. The first term wants a
    mixture that tells much, the second one that can be learnt; the student's own loss alone prefers layers that are
    easily imitated. The student runs in eval mode, so that its statistics stay what they are.
    """

    def __init__(self, group: Group, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.group = group
        self.beta = nn.Parameter(torch.zeros(len(group.teacher)))
        self.to_student = nn.Linear(teacher_channels, student_channels)
        self.from_student = Hint(student_channels, teacher_channels)

    @property
    def weights(self) -> Tensor:
        """alpha = softmax(beta) [J]."""
        return self.beta.softmax(0)

    def forward(
        self, student: nn.Module, features: Sequence[Tensor], example: Example, config: AggregationConfig
    ) -> Tensor:
        inputs, loss = example
        mixture = mixed(features, self.weights)
        carried = self.to_student(channels_last(mixture))
        carried = carried.permute(0, 3, 1, 2) if mixture.dim() == 4 else carried
        layer = student.get_submodule(self.group.student)
        seen: list[Tensor] = []

        def replace(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            seen.append(output)
            return carried

        with modes(student, lambda module: False), hooks([layer.register_forward_hook(replace)]):
            informative = loss(untouched(student, *inputs))
        # a hint gives its teacher no gradient, and here the mixture is what is to move
        guessed = self.from_student.regressor(channels_last(seen[0]))
        learnable = F.mse_loss(guessed, channels_last(mixture))
        return config.informative * informative + config.learnable * learnable


def search_weights(
    student: nn.Module,
    teacher: nn.Module,
    group: Group,
    train: Iterable[Example],
    held_out: Iterable[Example],
    config: AggregationConfig = AggregationConfig(),
    on_step: Callable[[int, float, Tensor], None] = lambda step, loss, weights: None,
) -> Tensor:
    """The weights [J] of one group, searched in two levels, each by steps of one order: the student, changed in place,
    learns from labels and the mixture on examples of `train`; weights and bridge learn on `held_out`. They end with the
    shorter of the two.

        w    = argmin  L(student) + gamma * mean (A - F(S))^2      on train
        beta = argmin  the loss of `Bridge`                        on held_out

    The teacher is frozen. `on_step` gets the step, counted from 0, the bridge's loss and the weights.
    """
    bridge = connector = None
    for step, (batch, judge) in enumerate(zip(train, held_out)):
        inputs, loss = batch
        of_teacher = _features(teacher, group, inputs)
        student.train()
        with recorded(student, [group.student]) as found:
            output = untouched(student, *inputs)
        if bridge is None:
            sizes = channels(found[group.student]), channels(of_teacher[-1])
            device = of_teacher[-1].device
            bridge, connector = Bridge(group, *sizes).to(device), Hint(*sizes).to(device)
            by_training = torch.optim.SGD([*student.parameters(), *connector.parameters()], config.lr, momentum=0.9)
            by_judging = torch.optim.Adam(bridge.parameters(), config.weights_lr, betas=(0.5, 0.999))
        mixture = mixed(of_teacher, bridge.weights.detach())
        total = loss(output) + config.hint * connector(found[group.student], mixture)
        by_training.zero_grad()
        total.backward()
        by_training.step()
        found_loss = bridge(student, _features(teacher, group, judge[0]), judge, config)
        by_judging.zero_grad()
        found_loss.backward()
        by_judging.step()
        student.zero_grad()
        on_step(step, found_loss.item(), bridge.weights.detach())
    if bridge is None:
        raise ValueError("there is no example to search weights by")
    return bridge.weights.detach()


def _features(teacher: nn.Module, group: Group, inputs: tuple) -> list[Tensor]:
    with torch.no_grad(), modes(teacher, lambda module: False), recorded(teacher, group.teacher) as found:
        untouched(teacher, *inputs)
    return [found[name].float() for name in group.teacher]
