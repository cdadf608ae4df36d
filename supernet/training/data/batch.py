"""A batch: a tree of tensors whose first dimension are the examples, such as (images, labels).

Trees are those of `torch.utils._pytree`: tuples, lists and dicts, of tensors and of plain values, which belong to every
example. Images may be `Pixels`, which `on` makes tensors that a network takes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from supernet.training.data.pixels import Pixels

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


def chosen(batch: Batch, examples: Tensor) -> Batch:
    """The batch of the examples of these indices, in their order."""
    return tree_map(lambda leaf: leaf[examples.to(leaf.device)] if isinstance(leaf, Tensor) else leaf, batch)


def take(batches: Iterable[Batch], count: int | None) -> Iterator[Batch]:
    """Batches of the first `count` examples alone, the last batch cut; all batches if None."""
    so_far = 0
    for batch in batches:
        own = examples_in(batch)
        yield batch if count is None or so_far + own <= count else split(batch, count - so_far)[0]
        so_far += own
        if count is not None and so_far >= count:
            return


def dropped(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """Batches without the first `count` examples, the first batch cut; those that lose all are left out."""
    for batch in batches:
        own = examples_in(batch)
        if count < own:
            yield joined(split(batch, count)[1:]) if count else batch
        count = max(count - own, 0)


def in_chunks(batches: Iterable[Batch], most: int | None) -> Iterator[list[Batch]]:
    """`batches` in lists of at most `most` examples, whose batches are cut where a list is full; all in one list if
    they are no more, or if `most` is None.

    The last two lists are equally long. No more than two lists and a batch are held at a time.
    """
    held, count = [], 0
    for batch in batches:
        held.append(batch)
        count += examples_in(batch)
        while most is not None and count > 2 * most:
            chunk, held = _divided(held, most)
            count -= most
            yield chunk
    if most is None or count <= most:
        yield held
    else:
        yield from _divided(held, -(-count // 2))


def _divided(batches: Sequence[Batch], first: int) -> tuple[list[Batch], list[Batch]]:
    """The `first` examples of `batches`, and the others."""
    whole, others, left = [], list(batches), first
    while others and examples_in(others[0]) <= left:
        left -= examples_in(others[0])
        whole.append(others.pop(0))
    if left:
        cut, *rest = split(others[0], left)
        whole.append(cut)
        others[0] = joined(rest)
    return whole, others


def whole_batches(batches: Iterable[Batch], most: int | None) -> Iterator[list[Batch]]:
    """`batches` in lists of at most `most` examples, or of a single batch that is larger; all in one if None."""
    held: list[Batch] = []
    for batch in batches:
        if held and most is not None and sum(map(examples_in, [*held, batch])) > most:
            yield held
            held = []
        held.append(batch)
    yield held


def on(device: torch.device, batch: Batch, memory_format: torch.memory_format = torch.preserve_format) -> Batch:
    """The batch on `device`, where its `Pixels` are normalised; what looks like images, floating point in four
    dimensions, in `memory_format`."""

    def move(leaf: Any) -> Any:
        if isinstance(leaf, Pixels):
            return Pixels(move(leaf.values), leaf.mean, leaf.std).normalised(memory_format)
        if not isinstance(leaf, Tensor):
            return leaf
        is_images = leaf.dim() == 4 and leaf.is_floating_point()
        # a copy to the CPU that did not block would be read before it is done
        own = memory_format if is_images else torch.preserve_format
        return leaf.to(device, memory_format=own, non_blocking=device.type != "cpu")

    return tree_map(move, batch, is_leaf=is_pixels)


def with_normalised(batch: Batch, moved: Batch) -> Batch:
    """The batch with those of its images normalised that still are `Pixels`, which are taken from the same batch
    `moved` by `on`; all else is where it was."""
    return tree_map(lambda own, other: other if is_pixels(own) else own, batch, moved, is_leaf=is_pixels)


def is_pixels(leaf: Any) -> bool:
    return isinstance(leaf, Pixels)
