"""Cutting a supernet into blocks that can be trained and rated one by one, at the resolutions of a teacher's features.

A block is a supernet of its own: its architectures, the *paths*, are what the choices that matter to it may be, and its
plain modules are the pieces of the subnet between two cuts, behind an adapter where the widths are not the teacher's,
and before one that answers in the teacher's width and scale. What the teacher has as maps and the subnet as tokens, or
as maps with channels last, is turned into the other on both sides.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.blockwise import adapter, answer, spread
from search.blockwise.cuts import Cut
from search.blockwise.features import Feature
from search.prefix.dependence import layer_names, split
from search.prefix.pieces import Piece, carried, cut
from supernet.families import Family
from supernet.nesting import covering_archs
from supernet.plain import inputs_like
from supernet.slicing import Rule
from supernet.space import Arch, SearchSpace
from supernet.supernet import Builder, Supernet
from supernet.training.randomness import Stream, part_seed
from supernet.views import no_views

# B batch, C channels, H height, W width, P class tokens and registers, K blocks


@dataclass(frozen=True)
class Block:
    """A part of a supernet between two cuts."""

    name: str  # of the module that the block ends with
    target: Feature  # of the teacher
    scope: frozenset[str]  # the choices that the block depends on
    net: Supernet  # whose architectures are the paths

    def path(self, arch: Arch) -> Arch:
        """The path that an architecture of the whole network takes through this block."""
        return Arch({n: v for n, v in arch.items() if n in self.scope}) if self.scope else self.net.space.largest


class Segment(nn.Sequential):
    """Some consecutive pieces of a plain module as a module, with the tensors' own names."""

    def __init__(self, model: nn.Module, pieces: Sequence[Piece]) -> None:
        super().__init__()
        names = {id(module): name for name, module in model.named_modules()}
        self._pieces = list(pieces)  # which hold the same layers
        self._direct = []  # where the tensors lie that a piece uses by itself, such as positions
        for piece in pieces:
            for layer in piece.layers:
                owner, leaf = _owner(self, names[id(layer)])
                owner.add_module(leaf, layer)
            direct = {node: (*_owner(self, name), name) for node, name in piece.tensors().items()}
            for owner, leaf, name in direct.values():
                _put(owner, leaf, operator.attrgetter(name)(model))
            self._direct.append({node: (owner, leaf) for node, (owner, leaf, _) in direct.items()})

    def forward(self, x: Tensor, *further: Tensor) -> Tensor:
        y = carried(x, *further)
        for piece, direct in zip(self._pieces, self._direct):
            tensors = {node: getattr(*place) for node, place in direct.items()}
            y = piece.forward(y, tensors)  # not called as a module, so that a tracer sees the layers by their names
        return y[0] if further else y


class Tokens(nn.Module):
    """Maps [B, C, H, W] to tokens [B, P + H W, C], the first P of which are learnt: the teacher has none."""

    def __init__(self, channels: int, prefix: int) -> None:
        super().__init__()
        self.prefix = nn.Parameter(0.02 * torch.randn(1, prefix, channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.prefix.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)


class Map(nn.Module):
    """Tokens [B, P + H W, C] to maps [B, C, H, W], without the first P."""

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -math.prod(self.size) :].transpose(1, 2).unflatten(2, self.size)


class Permuted(nn.Module):
    """Maps with their dimensions in another order."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)


class Between(nn.Module):
    """A part of a subnet between features of a teacher: `further` inputs are the subnet's."""

    def __init__(
        self, before: OrderedDict[str, nn.Module], student: nn.Module, after: OrderedDict[str, nn.Module]
    ) -> None:
        super().__init__()
        self.before, self.student, self.after = nn.Sequential(before), student, nn.Sequential(after)

    def forward(self, x: Tensor, *further: Tensor) -> Tensor:
        return self.after(self.student(self.before(x), *further))


def cut_blocks(family: Family, space: SearchSpace, cuts: Sequence[Cut], seed: int = 0) -> list[Block]:
    """The blocks of the architectures `space` of a family that end with each of the `cuts`; see
    `search.blockwise.cuts`. ValueError for a family with `views`."""
    if family.views is not no_views:
        raise ValueError("a family whose tensors have `views` is not cut into blocks, which are supernets of their own")
    names = tuple(place.name for place in cuts)
    blocks = []
    for index, (target, name, scope) in enumerate(cuts):
        paths = space.subspace(scope)
        before = cuts[index - 1].target if index else None
        build = _BlockBuilder(family.build, space, family.example(space.largest), names, index, before, target)
        build = build.with_adapter(paths)
        net = Supernet(paths, build, _rules(family, build(paths.largest)), seed=part_seed(seed, Stream.BLOCK, index))
        blocks.append(Block(name, target, scope, net))
    return blocks


def begin_at(block: Block, target: Tensor) -> None:
    """Let the block begin, in place, by answering the mean of each channel of `target`, features of the teacher behind
    it, which it then learns in units of their deviation."""
    for name, value in spread(target).items():
        block.net.get_buffer(f"after.spread.{name}").copy_(value)


def parts(model: nn.Module, cuts: Sequence[str], inputs: int = 1) -> list[list[Piece]]:
    """The pieces of a subnet, in eval mode and called with so many `inputs`, for each cut those from the cut before it.
    ValueError as in `split`."""
    pieces = cut(model, inputs=inputs)
    return [pieces[part] for part in split(layer_names(model, pieces), cuts)]


class _Ends(NamedTuple):
    """What comes into a block and out of it, as the subnet has it, for one example."""

    first: Tensor
    last: Tensor
    channels_last: bool  # whether maps are [B, H, W, C]

    @property
    def channels(self) -> tuple[int, int]:
        return tuple(x.shape[1 if x.dim() == 4 and not self.channels_last else -1] for x in (self.first, self.last))


@dataclass(frozen=True)
class _BlockBuilder:
    """Builds a block's plain module from a path."""

    build: Builder
    space: SearchSpace
    example: tuple  # what all subnets are called with
    cuts: tuple[str, ...]
    index: int
    seen: Feature | None  # the teacher's features that the block sees; None: it sees what the network is called with
    target: Feature
    adapt: bool = True

    def __call__(self, path: Arch) -> nn.Module:
        model, own, ends = self._cut(path)
        in_chs, out_chs = ends.channels
        before: OrderedDict[str, nn.Module] = OrderedDict()
        if self.seen:
            if self.adapt:
                before |= adapter(self.seen.channels, in_chs, tokens=self.seen.is_tokens)
            if ends.first.dim() == 3 and not self.seen.is_tokens:
                before["layout"] = Tokens(in_chs, ends.first.shape[1] - math.prod(self.seen.size))
            elif ends.channels_last and ends.first.dim() == 4:
                before["layout"] = Permuted(0, 2, 3, 1)
        after: OrderedDict[str, nn.Module] = OrderedDict()
        if ends.last.dim() == 3 and not self.target.is_tokens:
            after["layout"] = Map(self.target.size)
        elif ends.channels_last and ends.last.dim() == 4:
            after["layout"] = Permuted(0, 3, 1, 2)
        after |= answer(out_chs, self.target.channels, tokens=self.target.is_tokens)
        return Between(before, Segment(model, own), after)

    def with_adapter(self, paths: SearchSpace) -> _BlockBuilder:
        """The same with an adapter before the block only where a path's width is not the teacher's."""
        widths = {self._cut(path)[2].channels[0] for path in (*covering_archs(paths), paths.smallest)}
        return replace(self, adapt=self.seen is not None and widths != {self.seen.channels})

    @torch.no_grad()
    def _cut(self, path: Arch) -> tuple[nn.Module, list[Piece], _Ends]:
        """The subnet that takes the path, the pieces of the block, and what these give, whatever the weights."""
        model = self.build(self.space.complete(path)).eval()
        *before, own = parts(model, self.cuts[: self.index + 1], len(self.example))
        given = inputs_like(self.example, model, torch.get_default_device())
        x = carried(*given)
        for piece in itertools.chain(*before):
            x = piece(x)
        first = x
        for piece in own:
            x = piece(x)
        first, last = (y[0] if isinstance(y, tuple) else y for y in (first, x))
        return model, own, _Ends(first, last, getattr(model, "output_fmt", "NCHW") == "NHWC")


def _rules(family: Family, largest: nn.Module) -> dict[str, Rule]:
    """The family's slicing rules for the tensors that a block has."""
    rules = {f"student.{pattern}": rule for pattern, rule in family.rules.items()}
    names = list(largest.state_dict())
    return {pattern: rule for pattern, rule in rules.items() if any(fnmatchcase(name, pattern) for name in names)}


def _owner(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module within `root` that what has this name is to lie in, made if it is not there, and its name there."""
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Sequential())
        root = root._modules[part]
    return root, leaf


def _put(owner: nn.Module, name: str, tensor: Tensor) -> None:
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(name, tensor)
    else:
        owner.register_buffer(name, tensor)
