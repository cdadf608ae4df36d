"""What functions that move, join and pick entries do to channels. They are rules as in `supernet.channels.rules`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from supernet.channels.labels import FIXED, Follower, Labels

# B batch, C channels, H height, W width


def broadcast(t: Follower, dims: int, operands: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Labels:
    """The labels that operands, each with labels and sizes, have in common in a result of so many dimensions."""
    labels = [FIXED] * dims
    first = [True] * dims
    for of_operand, sizes in operands:
        for dim in range(-len(sizes), 0):
            if sizes[dim] > 1:
                labels[dim] = of_operand[dim] if first[dim] else t.tie(of_operand[dim], labels[dim])
                first[dim] = False
    return tuple(labels)


def padding(t: Follower, result: Tensor, x: Tensor, pad: Sequence[int], *args, **options) -> Labels:
    labels = list(t.labels(x))
    for dim, (before, after) in enumerate(zip(pad[::2], pad[1::2]), 1):
        if before or after:
            t.fix((labels[-dim],))
            labels[-dim] = FIXED
    return tuple(labels)


def reduction(t: Follower, result: object, x: Tensor, *args, **options) -> list[Labels] | None:
    """Entries along some dimensions become one, whatever their order: a mean, a norm, the largest."""
    dim = options.get("dim", args[0] if args else None)
    if isinstance(dim, Tensor):  # the larger of two tensors
        return None
    results = [result] if isinstance(result, Tensor) else result
    reduced = range(x.dim()) if dim is None else [d % x.dim() for d in ([dim] if isinstance(dim, int) else dim)]
    kept = [FIXED if d in reduced else label for d, label in enumerate(t.labels(x))]
    if results[0].dim() < x.dim():
        kept = [label for d, label in enumerate(kept) if d not in reduced]
    return [tuple(kept)] * len(results)


def norm(t: Follower, result: Tensor, x: Tensor, p=2, dim=None, *args, **options) -> list[Labels] | None:
    return reduction(t, result, x, dim)


def reshape(t: Follower, result: Tensor, x: Tensor, *args, **options) -> Labels:
    """Where the shapes agree on a dimension, it stays what it is. Where dimensions are merged, the channels of one of
    them may lie in blocks and repeat; where one is split, it has to fall apart in the same way."""
    labels = [FIXED] * result.dim()
    before = [d for d, size in enumerate(x.shape) if size > 1]
    after = [d for d, size in enumerate(result.shape) if size > 1]
    while before and after:
        taken, given = [before.pop(0)], [after.pop(0)]
        while (have := math.prod(x.shape[d] for d in taken)) != (want := math.prod(result.shape[d] for d in given)):
            if have < want:
                taken.append(before.pop(0))
            else:
                given.append(after.pop(0))
        whole = t.labels(x)[taken[0]]
        if len(taken) > 1:
            whole = t.set.merge([t.labels(x)[d] for d in taken], [x.shape[d] for d in taken])
        parts = t.set.unmerge(whole, [result.shape[d] for d in given]) if len(given) > 1 else (whole,)
        for dim, label in zip(given, parts):
            labels[dim] = label
    return tuple(labels)


def permute(t: Follower, result: Tensor, x: Tensor, *dims, **options) -> Labels:
    dims = options.get("dims", dims)
    order = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
    return tuple(t.labels(x)[dim] for dim in order)


def transpose(t: Follower, result: Tensor, x: Tensor, a: int, b: int) -> Labels:
    labels = list(t.labels(x))
    labels[a], labels[b] = labels[b], labels[a]
    return tuple(labels)


def transposed(t: Follower, result: Tensor, x: Tensor) -> Labels:
    return t.labels(x)[::-1]


def last_two_transposed(t: Follower, result: Tensor, x: Tensor) -> Labels:
    return transpose(t, result, x, -2, -1)


def movedim(t: Follower, result: Tensor, x: Tensor, source: int, destination: int) -> Labels:
    labels = list(t.labels(x))
    label = labels.pop(source)
    labels.insert(destination % x.dim(), label)
    return tuple(labels)


def expand(t: Follower, result: Tensor, x: Tensor, *sizes, **options) -> Labels:
    labels = t.labels(x)
    return (*(FIXED for _ in range(result.dim() - len(labels))), *labels)


def repeat(t: Follower, result: Tensor, x: Tensor, *counts, **options) -> Labels:
    counts = options.get("repeats", counts[0] if len(counts) == 1 and not isinstance(counts[0], int) else counts)
    labels = (*(FIXED for _ in range(result.dim() - x.dim())), *t.labels(x))
    return tuple(t.set.compose(count, label, 1) for count, label in zip(counts, labels))


def concatenation(t: Follower, result: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> Labels | None:
    """Tensors of the same channels are blocks of them; others are fixed along the dimension in which they lie."""
    if len({tensor.dim() for tensor in tensors}) > 1:
        return None
    columns = [list(column) for column in zip(*(t.labels(tensor) for tensor in tensors))]
    labels = []
    for d, column in enumerate(columns):
        if d != dim % result.dim():
            for label in column:
                t.tie(label, column[0])
            labels.append(column[0])
        elif len({t.set.parts(label) for label in column}) == 1:
            labels.append(t.set.compose(len(column), column[0], 1))
        else:
            t.fix(column)
            labels.append(FIXED)
    return tuple(labels)


def stack(t: Follower, result: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> Labels:
    columns = zip(*(t.labels(tensor) for tensor in tensors))
    labels = []
    for first, *others in columns:
        for label in others:
            t.tie(label, first)
        labels.append(first)
    labels.insert(dim % result.dim(), FIXED)
    return tuple(labels)


def indexing(t: Follower, result: Tensor, x: Tensor, index) -> Labels | None:
    indices = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(i, list) or (isinstance(i, Tensor) and not _is_index(i)) for i in indices):
        return None
    if sum(isinstance(i, Tensor) for i in indices) > 1:
        return None
    taken = sum(i is not None and i is not Ellipsis for i in indices)
    if Ellipsis in [i for i in indices if not isinstance(i, Tensor)]:
        at = next(n for n, i in enumerate(indices) if i is Ellipsis)
        indices[at : at + 1] = [slice(None)] * (x.dim() - taken)
    else:
        indices += [slice(None)] * (x.dim() - taken)
    labels, remaining = [], list(t.labels(x))
    for i in indices:
        if i is None:
            labels.append(FIXED)
            continue
        label = remaining.pop(0)
        if isinstance(i, slice) and i == slice(None):
            labels.append(label)
            continue
        t.fix((label,))
        labels += [FIXED] * (i.dim() if isinstance(i, Tensor) else isinstance(i, slice))
    return tuple(labels) if len(labels) == result.dim() else None


def _is_index(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex() and "bool" not in str(tensor.dtype)


def moved(t: Follower, result: Tensor, x: Tensor, shifts, dims=None, **options) -> Labels | None:
    """`roll`: entries change places along some dimensions."""
    if dims is None:
        return None
    labels = list(t.labels(x))
    for dim in [dims] if isinstance(dims, int) else dims:
        t.fix((labels[dim],))
        labels[dim] = FIXED
    return tuple(labels)


def flip(t: Follower, result: Tensor, x: Tensor, *dims, **options) -> Labels:
    dims = options.get("dims", dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims)
    return moved(t, result, x, None, dims)


def unbind(t: Follower, result: Sequence[Tensor], x: Tensor, dim: int = 0) -> list[Labels]:
    labels = list(t.labels(x))
    t.fix((labels.pop(dim),))
    return [tuple(labels)] * len(result)


def chunk(t: Follower, result: Sequence[Tensor], x: Tensor, size=None, dim: int = 0, **options) -> list[Labels] | None:
    """Equal parts are blocks of the same channels; unequal ones fix them."""
    labels = list(t.labels(x))
    if len({part.shape[dim] for part in result}) == 1 and len(result) > 1:
        labels[dim] = t.set.split(labels[dim], len(result))
    elif len(result) > 1:
        t.fix((labels[dim],))
        labels[dim] = FIXED
    return [tuple(labels)] * len(result)


def glu(t: Follower, result: Tensor, x: Tensor, dim: int = -1) -> Labels:
    """The first half of the channels times a function of the second half."""
    return chunk(t, [result, result], x, 2, dim)[0]


def pixel_unshuffle(t: Follower, result: Tensor, x: Tensor, factor: int) -> Labels:
    """Every channel becomes `factor`^2 in a row."""
    *others, channels, height, width = t.labels(x)
    t.fix((height, width))
    return (*others, t.set.compose(1, channels, factor**2), FIXED, FIXED)


def pixel_shuffle(t: Follower, result: Tensor, x: Tensor, factor: int) -> Labels:
    *others, channels, height, width = t.labels(x)
    t.fix((height, width))
    inner, _ = t.set.unmerge(channels, (x.shape[-3] // factor**2, factor**2))
    return (*others, inner, FIXED, FIXED)


def unfold(t: Follower, result: Tensor, x: Tensor, *args, **options) -> Labels | None:
    """Patches [B, C x K^2, L] of [B, C, H, W]: every channel in as many entries in a row as a patch has pixels."""
    if x.dim() != 4 or result.dim() != 3:
        return None
    rows, channels, *places = t.labels(x)
    t.fix(places)
    return (rows, t.set.compose(1, channels, result.shape[1] // x.shape[1]), FIXED)


NAMES: Mapping[Callable, Sequence[str]] = {
    padding: ("pad",),
    reduction: ("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "logsumexp"),
    norm: ("norm", "linalg_vector_norm"),
    reshape: ("flatten", "reshape", "reshape_as", "view", "view_as", "unflatten", "squeeze", "unsqueeze"),
    permute: ("permute",),
    transpose: ("transpose", "swapaxes", "swapdims"),
    transposed: ("t", "T"),
    last_two_transposed: ("mT",),
    movedim: ("movedim", "moveaxis"),
    expand: ("expand", "expand_as"),
    repeat: ("repeat",),
    concatenation: ("cat", "concat"),
    stack: ("stack",),
    indexing: ("getitem",),
    moved: ("roll",),
    flip: ("flip",),
    unbind: ("unbind",),
    chunk: ("chunk", "split"),
    glu: ("glu",),
    pixel_unshuffle: ("pixel_unshuffle",),
    pixel_shuffle: ("pixel_shuffle",),
    unfold: ("unfold",),
}
