"""Layers whose channels come in blocks: gates (`F.glu`, `chunk`), fused queries, keys and values, shuffles, and what
comes behind a concatenation (`torch.cat`, or `stack` and `flatten`).

No attribute tells such blocks. The rows of a smaller layer whose outputs are divided are not the leading ones, since
its blocks begin elsewhere; nor are its columns, if its inputs were put together of parts of which any but the last is
smaller. `Divisions` sees where blocks begin while a module runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

PRODUCTS = ("linear", "conv1d", "conv2d", "conv3d")
SPLITS = ("chunk", "split", "tensor_split", "split_with_sizes")
CONCATENATIONS = {"cat": 0, "concat": 0, "concatenate": 0, "hstack": 1}  # and the dimension, unless given
RESHAPES = ("view", "reshape", "unflatten", "flatten", "unsqueeze", "squeeze")
MEANS = ("mean", "sum", "amax")
PIXELS = ("pixel_unshuffle", "pixel_shuffle")
CHANNELS_SECOND = ("batch_norm", "group_norm", "instance_norm", "prelu")  # those of their parameters are dimension 1
OPERATORS = ("add", "sub", "mul", "div", "truediv", "maximum", "minimum", "where")
ELEMENTWISE = (*OPERATORS, *(f"{prefix}{name}" for prefix in "ir" for name in OPERATORS), "layer_norm", "rms_norm")
MIXING = ("matmul", "rmatmul", "bmm", "mm", "addmm", "baddbmm", "einsum", "bilinear", "gather", "flip", "roll", "sort")


class Division(NamedTuple):
    """One division of channels; equal ones begin their blocks at the same channels."""

    function: str
    blocks: tuple[int, ...]  # where all but the first begin, or, of a reshape, the sizes of the dimensions below it
    joined: bool = False  # whether `function` put the blocks together, rather than taking them apart


class Origin(NamedTuple):
    """Where the channels along one dimension of a tensor come from, as far as that is known."""

    # names and dimensions of the module's tensors that have one entry for each channel
    tensors: tuple[tuple[str, int], ...] = ()
    joined: Division | None = None  # how the channels were put together


Dims = Mapping[int, Origin]  # by dimension
DimUse = tuple[str, int, str]  # the name of a tensor, a dimension of it, and the submodule that runs


class Divisions:
    """Follows the channels of `module`'s tensors, and concatenations, as long as they can be told."""

    def __init__(self, module: nn.Module) -> None:
        self.found: dict[DimUse, list[Division]] = {}
        self._known: dict[int, tuple[Tensor, Dims]] = {}  # the tensors are kept alive, so that no other has their id
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            self._know(tensor, {dim: Origin(((name, dim),)) for dim in range(tensor.dim())})

    def follow(
        self, where: str, function: str, args: Sequence[object], kwargs: Mapping[str, object], result: object
    ) -> None:
        """Note what a call of torch's `function`, made by the submodule `where`, makes of the channels it takes."""
        values = [*args, *kwargs.values()]
        x = next((value for value in values if isinstance(value, Tensor)), None)
        if function in CONCATENATIONS:
            self._concatenate(where, function, args, kwargs, result)
        elif x is None:
            return
        elif function in PRODUCTS:
            weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
            self._multiply(where, x, weight, kwargs.get("bias", args[2] if len(args) > 2 else None), result)
        elif isinstance(result, tuple | list):
            if function in SPLITS:
                self._split(where, function, args, kwargs, x, result)
        elif isinstance(result, Tensor):
            dims, divided = _carried(function, args, kwargs, x, self._of(x), result)
            for dim, division in divided.items():
                self._note(where, self._of(x).get(dim, Origin()).tensors, division)
            if function in ELEMENTWISE or function in CHANNELS_SECOND:
                others = [value for value in values if isinstance(value, Tensor) and value is not x]
                for other in others:
                    dims = self._joined(where, dims, _aligned(function, other, self._of(other), result))
            self._know(result, dims)

    def _of(self, tensor: Tensor) -> Dims:
        return self._known[id(tensor)][1] if id(tensor) in self._known else {}

    def _know(self, tensor: Tensor, dims: Dims) -> None:
        if any(channels != Origin() for channels in dims.values()):
            self._known[id(tensor)] = tensor, dims
        else:
            self._known.pop(id(tensor), None)

    def _note(self, where: str, tensors: Sequence[tuple[str, int]], division: Division) -> None:
        for name, dim in tensors:
            self.found.setdefault((name, dim, where), []).append(division)

    def _joined(self, where: str, dims: Dims, others: Dims) -> Dims:
        """Those of an entry-by-entry function of two tensors, whose channels are then the same."""
        joined = dict(dims)
        for dim, other in others.items():
            own = dims.get(dim, Origin())
            for channels, met in ((own, other), (other, own)):
                if channels.joined:
                    self._note(where, [t for t in met.tensors if t not in channels.tensors], channels.joined)
            joined[dim] = Origin(tuple(dict.fromkeys([*own.tensors, *other.tensors])), own.joined or other.joined)
        return joined

    def _multiply(self, where: str, x: Tensor, weight: object, bias: object, result: Tensor) -> None:
        if not isinstance(weight, Tensor) or weight.dim() < 2:
            return
        behind = 1 if weight.dim() == 2 else weight.dim() - 1  # dimensions of x from the channels on
        own = self._of(x).get(x.dim() - behind, Origin())
        inputs, outputs = x.shape[x.dim() - behind], weight.shape[0]
        dims = {result.dim() - behind: self._of(weight).get(0, Origin())}
        if inputs == weight.shape[1]:
            if own.joined:
                self._note(where, self._of(weight).get(1, Origin()).tensors, own.joined)
        else:  # groups, which keep the order of the channels
            joined = own.joined and own.joined._replace(blocks=tuple(b * outputs // inputs for b in own.joined.blocks))
            followed = Origin(own.tensors if inputs == outputs and weight.shape[1] == 1 else (), joined)
            dims = self._joined(where, dims, {result.dim() - behind: followed})
        if isinstance(bias, Tensor):
            dims = self._joined(where, dims, {result.dim() - behind: self._of(bias).get(0, Origin())})
        self._know(result, dims)

    def _concatenate(
        self, where: str, function: str, args: Sequence[object], kwargs: Mapping[str, object], result: Tensor
    ) -> None:
        parts = args[0] if args else kwargs["tensors"]
        along = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else CONCATENATIONS[function]))
        along = along % result.dim() if result.dim() > 1 else 0
        blocks, begin, dims = [], 0, {}
        for part in parts:
            if part.dim() != result.dim():
                continue  # an empty vector, which torch leaves out
            own = self._of(part)
            joined = own[along].joined if along in own else None
            blocks += [begin] * (begin > 0) + [begin + block for block in (joined.blocks if joined else ())]
            begin += part.shape[along]
            dims = self._joined(where, dims, {dim: channels for dim, channels in own.items() if dim != along})
        division = Division(function, tuple(blocks), joined=True) if blocks else None
        self._know(result, {**dims, along: Origin((), division)})

    def _split(
        self,
        where: str,
        function: str,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        x: Tensor,
        result: Sequence[Tensor],
    ) -> None:
        along = kwargs.get("dim", args[2] if len(args) > 2 else 0) % x.dim()
        own = self._of(x)
        blocks = tuple(itertools.accumulate(part.shape[along] for part in result))[:-1]
        if blocks:
            self._note(where, own.get(along, Origin()).tensors, Division(function, blocks))
        joined = own[along].joined if along in own else None
        for begin, part in zip((0, *blocks), result):
            dims = {dim: channels for dim, channels in own.items() if dim != along}
            if joined:
                inside = tuple(b - begin for b in joined.blocks if begin < b < begin + part.shape[along])
                dims[along] = Origin((), joined._replace(blocks=inside) if inside else None)
            self._know(part, dims)


def _aligned(function: str, other: Tensor, own: Dims, result: Tensor) -> Dims:
    """The dimensions of `result` that are those of `other`, which it was computed from, too."""
    ahead = 1 if function in CHANNELS_SECOND else result.dim() - other.dim()
    return {
        dim + ahead: channels
        for dim, channels in own.items()
        if 0 <= dim + ahead < result.dim() and 1 < other.shape[dim] == result.shape[dim + ahead]
    }


def _carried(
    function: str, args: Sequence[object], kwargs: Mapping[str, object], x: Tensor, own: Dims, result: Tensor
) -> tuple[Dims, Mapping[int, Division]]:
    """What is known of the channels of `result`, and how `function` divides the dimensions of `x`."""
    options = [value for value in [*args[1:], *kwargs.values()] if isinstance(value, int)]
    if function in MIXING:
        return {}, {}
    if function == "glu":
        along = (options[0] if options else -1) % x.dim()
        kept = {dim: channels for dim, channels in own.items() if dim != along}
        return kept, {along: Division(function, (x.shape[along] // 2,))}
    if function == "narrow":
        along, begin = options[0] % x.dim(), options[1]
        kept = {dim: channels for dim, channels in own.items() if dim != along}
        return kept, {along: Division(function, (begin,))} if begin else {}
    if function == "getitem":
        return _indexed(args[1] if isinstance(args[1], tuple) else (args[1],), x, own)
    if function in RESHAPES:
        return _reshaped(function, x.shape, own, result.shape)
    if function in ("permute", "transpose"):
        dims = [d % x.dim() for d in (args[1] if len(args) == 2 else args[1:])]
        order = dims if function == "permute" else list(range(x.dim()))
        if function == "transpose" and len(dims) == 2:
            order[dims[0]], order[dims[1]] = dims[1], dims[0]
        return {order.index(dim): channels for dim, channels in own.items() if dim in order}, {}
    if function in MEANS and result.dim() < x.dim():
        dims = kwargs.get("dim", args[1] if len(args) > 1 else range(x.dim()))
        gone = {dim % x.dim() for dim in ([dims] if isinstance(dims, int) else dims)}
        return {dim - sum(d < dim for d in gone): channels for dim, channels in own.items() if dim not in gone}, {}
    if function in PIXELS:
        dim = x.dim() - 3
        joined = own[dim].joined if dim in own else None
        blocks = tuple(b * result.shape[dim] // x.shape[dim] for b in joined.blocks) if joined else ()
        return {dim: Origin((), joined._replace(blocks=blocks))} if joined else {}, {}
    return _aligned("", x, own, result) if result.dim() >= x.dim() else {}, {}


def _indexed(index: tuple[object, ...], x: Tensor, own: Dims) -> tuple[Dims, Mapping[int, Division]]:
    if not all(part is None or part is Ellipsis or isinstance(part, int | slice) for part in index):
        return {}, {}
    missing = [slice(None)] * (x.dim() - sum(part is not None and part is not Ellipsis for part in index))
    at = next((i for i, part in enumerate(index) if part is Ellipsis), len(index))
    kept, divided, dim, place = {}, {}, 0, 0
    for part in (*index[:at], *missing, *index[at + 1 :]):
        if isinstance(part, slice):
            if part.start:
                divided[dim] = Division("getitem", (part.start % x.shape[dim],))
            elif dim in own and part.step in (None, 1) and (part.stop is None or part.stop >= x.shape[dim]):
                kept[place] = own[dim]
        dim += part is not None
        place += not isinstance(part, int)
    return kept, divided


def _reshaped(function: str, before: torch.Size, own: Dims, after: torch.Size) -> tuple[Dims, Mapping[int, Division]]:
    kept, divided = {}, {}
    for dims, new in _groups(before, after):
        if len(dims) == 1 and len(new) == 1:
            if dims[0] in own:
                kept[new[0]] = own[dims[0]]
        elif len(dims) == 1 and new:
            divided[dims[0]] = Division(function, tuple(after[d] for d in new[1:]))
        elif len(new) == 1 and dims:  # an outer dimension's entries become blocks of the inner ones' size
            size = math.prod(before[d] for d in dims[1:])
            joined = own[dims[0]].joined if dims[0] in own else None
            blocks = tuple(block * size for block in joined.blocks) if joined else (size,)
            kept[new[0]] = Origin((), Division(joined.function if joined else function, blocks, joined=True))
    return kept, divided


def _groups(before: torch.Size, after: torch.Size) -> Iterator[tuple[list[int], list[int]]]:
    """Which dimensions of a tensor become which ones of it reshaped; those of size 1 are left out."""
    olds, news = ([d for d in range(len(shape)) if shape[d] != 1] for shape in (before, after))
    while olds and news and 0 not in before:
        dims, new = [olds.pop(0)], [news.pop(0)]
        while (have := math.prod(before[d] for d in dims)) != (want := math.prod(after[d] for d in new)):
            (dims if have < want else new).append((olds if have < want else news).pop(0))
        yield dims, new


def check_divisions(
    module: nn.Module,
    found: Mapping[DimUse, Sequence[Division]],
    larger: nn.Module,
    found_in_larger: Mapping[DimUse, Sequence[Division]],
    leads: Callable[[str], bool],
) -> None:
    """ValueError, naming the tensor, if blocks of a layer's channels begin elsewhere in `module` than in the `larger`
    module, where the layer has more channels, though `module` keeps the leading ones, as `leads` tells by the tensor's
    name."""
    tensors, larger_tensors = (dict([*m.named_parameters(), *m.named_buffers()]) for m in (module, larger))
    for place in found:
        name, dim, _ = place
        if place not in found_in_larger:
            continue
        have, want = larger_tensors[name].shape[dim], tensors[name].shape[dim]
        if have == want or not leads(name):
            continue
        for own, other in zip(found[place], found_in_larger[place]):
            if own.function == other.function and any(a != b for a, b in zip(own.blocks, other.blocks)):
                raise ValueError(_message(name, dim, own, have, want))


def _message(name: str, dim: int, division: Division, have: int, want: int) -> str:
    kind = {0: "rows", 1: "columns"}.get(dim, f"entries along dimension {dim}")
    remedy = f"slicing rules by name, such as supernet.slicing.blocks(2{', dim=1' if dim == 1 else ''}) for two equal"
    if division.joined:
        return (
            f"the {'channels' if dim == 0 else 'inputs'} of {name!r} are parts that `{division.function}` puts "
            f"together, and others than the last vary, so that the leading {want} of its {have} {kind} are no smaller "
            f"layer: let the last part alone vary, or give it {remedy} parts"
        )
    return (
        f"the outputs of {name!r} are divided by `{division.function}`, so that the leading {want} of its "
        f"{have} {kind} are no smaller layer: give it and its bias {remedy} blocks"
    )
