"""A batch: a tree of tensors whose first dimension are the examples, such as (images, labels).

Trees are those of `torch.utils._pytree`: tuples, lists and dicts, of tensors and of plain values, which belong to every
example.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_map_only, tree_unflatten

Batch = Any


def examples_in(batch: Batch) -> int:
    """The number of examples."""
    return next(len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))


def device_of(batch: Batch) -> torch.device:
    """The device of the batch's first tensor."""
    return next(leaf.device for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))


def split(batch: Batch, size: int) -> list[Batch]:
    """Batches of `size` examples each, the last one of what is left."""
    leaves, spec = tree_flatten(batch)
    columns = (leaf.split(size) if isinstance(leaf, Tensor) else itertools.repeat(leaf) for leaf in leaves)
    return [tree_unflatten(list(row), spec) for row in zip(*columns)]


def chunk(batch: Batch, parts: int) -> list[Batch]:
    """`parts` equal batches; the batch itself for a single one."""
    return [batch] if parts == 1 else split(batch, -(-examples_in(batch) // parts))


def joined(batches: Sequence[Batch]) -> Batch:
    """All examples of `batches` in one; their plain values are those of the first."""
    first, *others = batches
    if not others:
        return first
    return tree_map(lambda *leaves: torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0], first, *others)


def take(batches: Iterable[Batch], count: int | None) -> Iterator[Batch]:
    """Batches of the first `count` examples alone, the last batch cut; all batches if None."""
    so_far = 0
    for batch in batches:
        own = examples_in(batch)
        yield batch if count is None or so_far + own <= count else split(batch, count - so_far)[0]
        so_far += own
        if count is not None and so_far >= count:
            return


def on(device: torch.device, batch: Batch, memory_format: torch.memory_format = torch.preserve_format) -> Batch:
    """The batch on `device`; what looks like images, floating point in four dimensions, in `memory_format`."""

    def move(tensor: Tensor) -> Tensor:
        is_images = tensor.dim() == 4 and tensor.is_floating_point()
        # a copy to the CPU that did not block would be read before it is done
        own = memory_format if is_images else torch.preserve_format
        return tensor.to(device, memory_format=own, non_blocking=device.type != "cpu")

    return tree_map_only(Tensor, move, batch)
