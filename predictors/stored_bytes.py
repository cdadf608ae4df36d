"""The bytes that a network's weights take on a device's flash, as a cost of architectures, without weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from supernet.costs import stored_bytes
from supernet.skeleton import build_skeleton
from supernet.space import Arch


def stored(build: Callable[[Arch], nn.Module], bits: int = 32) -> Callable[[Sequence[Arch]], list[int]]:
    """A cost: `stored_bytes` of architectures."""

    def cost(archs: Sequence[Arch]) -> list[int]:
        return [stored_bytes(build_skeleton(build, arch), bits) for arch in archs]

    return cost
