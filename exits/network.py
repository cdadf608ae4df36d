"""Exits on a plain network, or on all subnets of a family, and the task that trains them in one forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import tee
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from distill.temporary import hooks
from supernet.families import Family
from supernet.plain import inputs_like
from supernet.skeleton import without_data
from supernet.space import Arch
from supernet.tasks import Classification, Task
from supernet.training.data.batch import Batch
from supernet.views import no_views

# N examples, E exits, K classes, C channels, T tokens


class Exits(nn.Module):
    """A network that gives the logits of its exits and its own, [N, E, K], in one forward pass.

    The network, `model`, stays as it is, with its names of tensors; `heads` are those of the exits, in the order of the
    modules `after` which they come. A second input is the mask [N, T] of the tokens, 0 for those that fill up a text.
    """

    def __init__(self, model: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.model, self.after = model, tuple(heads)
        self.heads = nn.ModuleList(heads.values())

    def forward(self, *inputs: Any) -> Tensor:
        found: dict[str, Tensor] = {}
        with hooks(
            self.model.get_submodule(name).register_forward_hook(
                lambda _, __, output, name=name: found.__setitem__(name, output)
            )
            for name in self.after
        ):
            logits = self.model(*inputs)
        mask = inputs[1] if len(inputs) > 1 else None
        return torch.stack([*(head(found[name], mask) for name, head in zip(self.after, self.heads)), logits], dim=1)


class ExitHead(nn.Module):
    """Logits [N, K] of features: the mean over tokens [N, T, C] or positions [N, C, H, W], normalised, and a linear
    layer. `channel_dim` is where features of four dimensions have their channels."""

    def __init__(self, channels: int, num_classes: int, channel_dim: int = 1) -> None:
        super().__init__()
        self.channel_dim = channel_dim
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` [N, T] is 0 for tokens that do not count; what has another shape is no mask of these."""
        if features.dim() == 4:
            features = features.mean((2, 3) if self.channel_dim == 1 else (1, 2))
        elif features.dim() == 3 and mask is not None and mask.shape == features.shape[:2]:
            weight = mask[..., None].to(features.dtype)
            features = (features * weight).sum(1) / weight.sum(1).clamp(min=1)
        elif features.dim() == 3:
            features = features.mean(1)
        return self.linear(self.norm(features))


def with_exits(model: nn.Module, after: Sequence[str], num_classes: int, example: tuple) -> Exits:
    """`model` with exits after the modules of the names `after`, in the order in which they run.

    Whatever is a stem, blocks and a head will do: each of the modules gives tokens [N, T, C] or a map, of which
    `ExitHead` makes logits. Of the `example` of the inputs shapes and types alone matter. ValueError for a module that
    is not there, gives something else, or comes in another order.
    """
    known = dict(model.named_modules())
    if unknown := [name for name in after if name not in known]:
        some = ", ".join(name for name in known if name and name.count(".") < 2)
        raise ValueError(f"the {type(model).__name__} has no module {unknown[0]!r} to exit after; it has {some}")
    features = without_data(model, partial(_features, example, after))
    if list(features) != list(after):
        raise ValueError(f"the modules to exit after run in the order {', '.join(features)}: name them in this order")
    last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    heads = {}
    for name, shape in features.items():
        if len(shape) not in (2, 3, 4):
            raise ValueError(f"an exit is after tokens [N, T, C] or maps, and {name!r} gives {list(shape)}")
        channel_dim = 1 if len(shape) == 4 and not last else -1
        heads[name] = ExitHead(shape[channel_dim], num_classes, channel_dim)
    return Exits(model, heads)


def _features(example: tuple, after: Sequence[str], model: nn.Module, device: torch.device) -> dict[str, torch.Size]:
    """The shapes of what the modules `after` give, in the order in which they run."""
    found: dict[str, torch.Size] = {}
    for name in after:
        model.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: found.__setitem__(name, getattr(output, "shape", torch.Size()))
        )
    model(*inputs_like(example, model, device))
    return found


def exits_family(family: Family, after: Sequence[str], task: ExitTask | None = None) -> Family:
    """`family` with exits in every subnet, after those of the modules `after` that the subnet has. Trained by `task`,
    by default `ExitTask` of the family's, a forward pass of a subnet trains all of its exits.

    ValueError for a family with pretrained weights, which have no heads for exits, and for one with `views`.
    """
    if family.weights is not None or family.views is not no_views:
        raise ValueError(
            "a family with pretrained weights or with views gets no exits: load weights into the `model` of its exits"
        )
    return replace(
        family,
        build=partial(_build, family, tuple(after)),
        rules={f"model.{pattern}": rule for pattern, rule in family.rules.items()},
        pieces=None,
        macs=None,
        parameters=None,
        task=task or ExitTask(family.task),
    )


def _build(family: Family, after: Sequence[str], arch: Arch, **rates: float) -> Exits:
    model = family.build(arch, **rates)
    names = {name for name, _ in model.named_modules()}
    return with_exits(model, [name for name in after if name in names], family.num_classes, family.example(arch))


@dataclass(frozen=True)
class ExitTask(Task):
    """Training all exits at once, each on the labels: sum_j w_j L_j / sum_j w_j over the exits j = 1, 2, ...

    The weights w_j are j (PABEE, arXiv 2006.04152, equation 3), all equal (BranchyNet, arXiv 1709.01686), or, for the
    second stage of DeeBERT (arXiv 2004.12993, section 3.2), in which the network itself is frozen, 1 for all but the
    last, and 0 for that. A student's exits all learn from the teacher's last one. The metric is that of `task` at the
    last exit; beside it there is that of every exit.
    """

    task: Task = field(default_factory=Classification)
    weights: Literal["depth", "equal", "internal"] = "depth"

    output_names: ClassVar = ("logits",)

    @property
    def input_names(self) -> Sequence[str]:  # type: ignore[override]
        return self.task.input_names

    @property
    def metric(self) -> str:
        return self.task.metric

    @property
    def uninformed_loss(self) -> float:
        return self.task.uninformed_loss

    @property
    def chance(self) -> float | None:
        return self.task.chance

    def inputs(self, batch: Batch, arch: Arch | None) -> tuple:
        return self.task.inputs(batch, arch)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return self._mean([self.task.loss(logits, batch) for logits in output.unbind(1)])

    def validation_loss(self, output: Tensor, batch: Batch) -> Tensor:
        return self.task.validation_loss(output[:, -1], batch)

    def distil(self, output: Tensor, teacher_output: Tensor, batch: Batch) -> Tensor:
        taught = teacher_output if teacher_output.dim() == 2 else teacher_output[:, -1]
        return self._mean([self.task.distil(logits, taught, batch) for logits in output.unbind(1)])

    def metrics(self, outputs: Iterable[Tensor], batches: Iterable[Batch]) -> dict[str, float]:
        """That of `task` at the last exit, and the means of `task.per_example` at each, `exit_1` and so on, where it is
        such a mean."""
        sums: dict[str, float] = {}
        count = 0

        def last(output: Tensor, batch: Batch) -> Tensor:
            nonlocal count
            count += len(output)
            for exit, logits in enumerate(output.unbind(1), 1):
                if (values := self.task.per_example(logits, batch)) is not None:
                    sums[f"exit_{exit}"] = sums.get(f"exit_{exit}", 0.0) + values.double().sum().item()
            return output[:, -1]

        first, second = tee(batches)
        found = self.task.metrics((last(output, batch) for output, batch in zip(outputs, first)), second)
        return found | {name: total / count for name, total in sums.items()}

    def per_example(self, output: Tensor, batch: Batch) -> Tensor | None:
        return self.task.per_example(output[:, -1], batch)

    def check_batch(self, batch: Batch) -> None:
        self.task.check_batch(batch)

    def check_output(self, output: object) -> None:
        if not isinstance(output, Tensor) or output.dim() != 3:
            raise ValueError("a network with exits gives logits [N, E, K]: make it by exits.with_exits")
        self.task.check_output(output[:, -1])

    def _mean(self, losses: Sequence[Tensor]) -> Tensor:
        weights = {
            "depth": [float(j) for j in range(1, len(losses) + 1)],
            "equal": [1.0] * len(losses),
            "internal": [1.0] * (len(losses) - 1) + [0.0],
        }[self.weights]
        if not sum(weights):
            raise ValueError("a network without exits but its own has no internal ones to train")
        return sum(weight * loss for weight, loss in zip(weights, losses) if weight) / sum(weights)
