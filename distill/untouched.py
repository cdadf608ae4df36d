"""Running a network on inputs that others still need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor
from torch.utils._pytree import tree_map_only

Output = TypeVar("Output")


def untouched(run: Callable[..., Output], *inputs: Any) -> Output:
    """`run(*inputs)`, after which the tensors in `inputs`, trees of them, hold what they held before.

    A network may work on its input in place, by normalising it for example; the next network would then see other
    images. So it gets a copy: a pass over the images, where a network's first layer alone makes several. Whoever gives
    one tensor to several networks, or several times to one, runs them by this function. `supernet.Supernet` does so by
    itself. Gradients flow through the copy.
    """
    return run(*tree_map_only(Tensor, Tensor.clone, inputs))
