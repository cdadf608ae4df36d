"""Gates on channels, which training closes where a teacher is followed as well without them.

Gu and Tresp, "Search for better students to learn distilled knowledge", arXiv 2001.11612: a student of the teacher's
own topology learns the teacher's answers by the KL divergence, with an L1 penalty on a gate for each channel,

    min over weights w and gates g of KL(student(x; w, g), teacher(x)) + lambda sum_j a_j |g_j|

where a_j weighs a channel by what it costs. Here the penalty is a proximal step after each of the optimizer's, so that
gates become 0 and not merely small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from distill.objective import Objective
from supernet.artifacts.deployment import settle
from supernet.channels import Channels, Trace, narrow, trace
from supernet.channels.importance import order_channels
from supernet.families.traced.kept_sizes import keep_sizes
from supernet.training.cohort import train_models
from supernet.training.data import Data
from supernet.training.execution import DEFAULT, Execution
from supernet.training.loop import StepResult
from supernet.training.loop.config import LoopConfig

# B batch, C channels, H = W pixels, O output channels

BY_TEACHER = Objective(labels=0.0, kl=1.0, temperature=4.0)


class Gate(nn.Module):
    """A number for each channel, which multiplies the scale and the shift of a BatchNorm, and so what it gives."""

    def __init__(self, value: nn.Parameter, blocks: int = 1) -> None:
        super().__init__()
        self.value, self._blocks = value, blocks

    def forward(self, vector: Tensor) -> Tensor:
        return vector * self.value.repeat(self._blocks).repeat_interleave(
            len(vector) // (self._blocks * len(self.value))
        )


@dataclass(frozen=True)
class Gates:
    """The gates of a model: one of [O] for all BatchNorms of channels that are the same, by the channels' name."""

    values: Mapping[str, nn.Parameter]
    channels: Mapping[str, Channels]
    costs: Mapping[str, float]  # of a channel, by their mean over all channels 1

    def shrink(self, amount: float) -> None:
        """The proximal step of the penalty: g = sign(g) max(|g| - amount a, 0), in place."""
        with torch.no_grad():
            for name, value in self.values.items():
                value.copy_(value.sign() * (value.abs() - amount * self.costs[name]).clamp_min(0.0))

    @property
    def open(self) -> dict[str, int]:
        """How many gates of each group are not 0."""
        return {name: int((value != 0).sum()) for name, value in self.values.items()}


def add_gates(model: nn.Module, example: Tensor) -> Gates:
    """Put gates of 1 behind the BatchNorms of `model`, in place; it computes what it did.

    Channels that a residual or a depthwise convolution ties have one gate, that all their BatchNorms share. Channels
    that a layer puts out without BatchNorm behind it have none, since a gate could not close them. Images are like
    `example` [B, C, H, W]. ValueError if there is nothing to put a gate behind.
    """
    found = trace(model, example)
    modules = dict(model.named_modules())
    values, channels = {}, {}
    for group in found.channels:
        norms = [name for name in group.scales if isinstance(modules.get(name.rpartition(".")[0]), _BatchNorm)]
        if not norms or len(norms) < len(group.producers):
            continue
        value = nn.Parameter(torch.ones(group.size))
        blocks = {member.tensor: member.blocks for member in group.members}
        for name in norms:
            norm = modules[name.rpartition(".")[0]]
            for leaf in ("weight", "bias"):
                parametrize.register_parametrization(norm, leaf, Gate(value, blocks[name]))
        values[group.name], channels[group.name] = value, group
    if not values:
        raise ValueError(f"{type(model).__name__} has no channels with BatchNorm behind every layer that puts them out")
    return Gates(values, channels, _costs(found, channels))


def fold_gates(model: nn.Module) -> nn.Module:
    """Multiply the gates of `model` into its BatchNorms, in place; returns `model`, a plain module that computes what
    it did."""
    for module in list(model.modules()):
        if isinstance(module, _BatchNorm) and parametrize.is_parametrized(module):
            settle(module)
            module.requires_grad_(True)
    return model


class Left(NamedTuple):
    """A network without the channels whose gates have closed."""

    model: nn.Module
    sizes: dict[str, int]  # how many channels are left behind gates, by the name of the channels


def without_closed(model: nn.Module, gates: Gates) -> Left:
    """`model` with its gates folded and the channels of closed ones taken away, in place; of a layer one stays.

    It computes what it did, where activations behind BatchNorm are 0 at 0, as ReLU and SiLU are.
    """
    scores = {name: value.detach().abs() for name, value in gates.values.items()}
    fold_gates(model)
    order_channels(model, gates.channels.values(), scores)
    sizes = {name: max(count, 1) for name, count in gates.open.items()}
    left = {gates.channels[name]: size for name, size in sizes.items()}
    return Left(keep_sizes(model, lambda module: narrow(module, left)), sizes)


def train_gated(
    model: nn.Module,
    teacher: nn.Module,
    example: Tensor,
    data: Data,
    config: LoopConfig,
    run_dir: Path,
    penalty: float,
    *,
    objective: Objective = BY_TEACHER,
    execution: Execution = DEFAULT,
    resume: bool = False,
    on_step: Callable[[StepResult], None] = lambda result: None,
    on_begin: Callable[[], None] = lambda: None,
) -> Left:
    """Train `model` with gates to answer as `teacher` does, and take the channels away whose gates have closed.

    `penalty` is lambda, of a channel that costs the mean. The optimizer moves gates as it does scales of BatchNorm,
    without weight decay. Images are like `example` [B, C, H, H]. The rest is as for
    `supernet.training.cohort.train_models`, but that a moving average of weights, in which no gate is 0, is refused.
    """
    if config.ema_decay:
        raise ValueError("gates do not close in a moving average: train without ema_decay (--ema-decay None)")
    gates = add_gates(model, example)
    (trained,) = train_models(
        [model],
        [example.shape[-1]],
        data,
        config,
        run_dir,
        objective,
        teacher,
        execution=execution,
        resume=resume,
        on_step=on_step,
        on_begin=on_begin,
        proximal=lambda lr: gates.shrink(lr * penalty),
    )
    return without_closed(trained.eval(), gates)


def _costs(found: Trace, channels: Mapping[str, Channels]) -> dict[str, float]:
    """The multiply-accumulates that a channel of each of these is part of, over their mean."""
    costs = dict.fromkeys(channels, 0.0)
    for layer in found.layers:
        for group in layer.channels:
            if group.name in costs:
                costs[group.name] += layer.macs / group.size
    mean = sum(costs[n] * g.size for n, g in channels.items()) / sum(g.size for g in channels.values())
    return {name: cost / mean for name, cost in costs.items()}
