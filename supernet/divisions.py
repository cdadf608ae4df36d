"""Layers whose outputs a forward pass divides: gates (`F.glu`, `chunk`), fused queries, keys and values, shuffles.

The rows of such a layer come in blocks, which no attribute tells. A smaller layer's rows are not the leading ones then,
since its blocks begin elsewhere. `Divisions` sees where they begin while a module runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

# C channels, the outputs of a layer

PRODUCTS = ("linear", "conv1d", "conv2d", "conv3d")
SPLITS = ("chunk", "split", "tensor_split", "split_with_sizes")
RESHAPES = ("view", "reshape", "unflatten", "flatten")


class Division(NamedTuple):
    """One division of a layer's outputs; equal ones begin their blocks at the same channels."""

    function: str
    blocks: tuple[int, ...]  # where they begin, or, of a reshape, the sizes of the dimensions below the first


class _Outputs(NamedTuple):
    weight: str
    dim: int  # of the channels
    tensor: Tensor  # kept alive, so that no other has its id


class Divisions:
    """Follows the outputs of the layers of `module`, as long as their channels stay as they are."""

    def __init__(self, module: nn.Module) -> None:
        self.found: dict[str, list[Division]] = {}  # by the name of the layer's weight
        self._names = {id(parameter): name for name, parameter in module.named_parameters()}
        self._outputs: dict[int, _Outputs] = {}

    def follow(self, function: str, args: Sequence[object], kwargs: Mapping[str, object], result: object) -> None:
        """Note what a call of torch's `function` makes of a layer's outputs."""
        if function in PRODUCTS:
            weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
            if (name := self._names.get(id(weight))) is not None:
                dim = result.dim() - 1 if function == "linear" else result.dim() - weight.dim() + 1
                self._outputs[id(result)] = _Outputs(name, dim, result)
            return
        source = next((self._outputs[id(tensor)] for tensor in args if id(tensor) in self._outputs), None)
        if source is None:
            return
        blocks, dim = _divided(function, args, kwargs, source, result)
        if blocks:
            self.found.setdefault(source.weight, []).append(Division(function, blocks))
        elif dim is not None:
            self._outputs[id(result)] = _Outputs(source.weight, dim, result)


def _divided(
    function: str, args: Sequence[object], kwargs: Mapping[str, object], source: _Outputs, result: object
) -> tuple[tuple[int, ...], int | None]:
    """How the channels of `source` are divided, and, if they are not, their dimension in `result` (None if lost)."""
    x, dim = source.tensor, source.dim
    options = [value for value in [*args[1:], *kwargs.values()] if isinstance(value, int)]
    if function in SPLITS:
        along = kwargs.get("dim", args[2] if len(args) > 2 else 0)
        sizes = [part.shape[dim] for part in result]
        return (tuple(itertools.accumulate(sizes))[:-1] if along % x.dim() == dim else ()), None
    if function == "glu":
        along = options[0] if options else -1
        return ((x.shape[dim] // 2,) if along % x.dim() == dim else ()), None
    if function == "narrow":
        return ((options[1],) if options[0] % x.dim() == dim and options[1] else ()), None
    if function == "getitem":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        if any(part is Ellipsis for part in index):
            at = next(i for i, part in enumerate(index) if part is Ellipsis)
            index = (*index[:at], *[slice(None)] * (x.dim() - len(index) + 1), *index[at + 1 :])
        ahead = index[: dim + 1]
        start = ahead[dim].start if len(ahead) > dim and all(isinstance(part, slice) for part in ahead) else None
        return ((start % x.shape[dim],) if start else ()), None
    if not isinstance(result, Tensor):
        return (), None
    if function in RESHAPES:
        return _reshaped(x.shape, dim, result.shape)
    if function in ("permute", "transpose"):
        dims = [d % x.dim() for d in (args[1] if len(args) == 2 else args[1:])]
        order = dims if function == "permute" else list(range(x.dim()))
        if function == "transpose" and len(dims) == 2:
            order[dims[0]], order[dims[1]] = dims[1], dims[0]
        return (), order.index(dim) if dim in order else None
    return (), dim if result.shape == x.shape else None


def _reshaped(before: torch.Size, dim: int, after: torch.Size) -> tuple[tuple[int, ...], int | None]:
    ahead = math.prod(before[:dim])
    start = next((d for d in range(len(after)) if math.prod(after[:d]) == ahead), None)
    if start is None:
        return (), None
    end = next((d for d in range(start, len(after)) if math.prod(after[start : d + 1]) == before[dim]), None)
    if end is None:
        return (), None
    factors = list(itertools.dropwhile(lambda size: size == 1, after[start : end + 1]))
    return tuple(factors[1:]), end if len(factors) <= 1 else None


def check_divisions(
    module: nn.Module,
    found: Mapping[str, Sequence[Division]],
    larger: nn.Module,
    found_in_larger: Mapping[str, Sequence[Division]],
    leads: Callable[[str], bool],
) -> None:
    """ValueError, naming the weight, if a layer's blocks begin elsewhere in `module` than in the `larger` one, which
    has more of its rows, and it keeps the leading ones, as `leads` tells by name."""
    for name in found.keys() & found_in_larger.keys():
        have, want = larger.get_parameter(name).shape, module.get_parameter(name).shape
        if have[0] == want[0] or not leads(name):
            continue
        for own, other in zip(found[name], found_in_larger[name]):
            if own.function == other.function and own.blocks != other.blocks:
                raise ValueError(
                    f"the outputs of {name!r} are divided by `{own.function}`, so that the leading {want[0]} of its "
                    f"{have[0]} rows are no smaller layer: give it and its bias slicing rules by name, such as "
                    "supernet.slicing.blocks(2) for two equal blocks"
                )
