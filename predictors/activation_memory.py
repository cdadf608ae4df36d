"""Peak activation memory as a cost of architectures, without weights and without computing anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from supernet.activation_memory import peak_activation_bytes
from supernet.skeleton import build_skeleton
from supernet.space import Arch

__all__ = ["peak_activation", "peak_activation_bytes"]


def peak_activation(
    build: Callable[[Arch], nn.Module],
    example: Callable[[Arch], Sequence[int] | tuple],
    bits: int = 32,
    fused: bool = False,
) -> Callable[[Sequence[Arch]], list[int]]:
    """A cost: the peak activation memory of architectures in bytes, each on its `example`, by `peak_activation_bytes`.

    About 50 ms for a network of 20 blocks.
    """

    def cost(archs: Sequence[Arch]) -> list[int]:
        skeletons = ((build_skeleton(build, arch).to("meta").eval(), example(arch)) for arch in archs)
        return [peak_activation_bytes(skeleton, inputs, bits, fused) for skeleton, inputs in skeletons]

    return cost
