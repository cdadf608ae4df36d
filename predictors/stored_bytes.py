"""The bytes that a network's weights take on a device's flash, as a cost of architectures, without weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

from supernet.skeleton import build_skeleton
from supernet.space import Arch


def stored_bytes(model: nn.Module, bits: int = 32) -> int:
    """What the parameters of `model` take where weights have `bits` each, in bytes.

    Tensors of two or more dimensions (kernels, matrices) take `bits` a number, each tensor rounded up to whole bytes.
    Vectors stay in single precision: biases, and the scales and shifts of normalisation, in whose place a deployed int8
    layer has a step and a bias for each channel. Running statistics are folded into these and take nothing, nor do
    constants that follow from the architecture, the graph, or a container around it all. A parameter that is used twice
    counts once.
    """
    return sum(
        math.ceil(parameter.numel() * (bits if parameter.dim() > 1 else 32) / 8) for parameter in model.parameters()
    )


def stored(build: Callable[[Arch], nn.Module], bits: int = 32) -> Callable[[Sequence[Arch]], list[int]]:
    """A cost: `stored_bytes` of architectures."""

    def cost(archs: Sequence[Arch]) -> list[int]:
        return [stored_bytes(build_skeleton(build, arch), bits) for arch in archs]

    return cost
