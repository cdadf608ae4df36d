"""Cutting a supernet into blocks that can be trained and rated one by one, at the resolutions of a teacher's features.

A block is a supernet of its own: its architectures, the *paths*, are what the choices that matter to it may be, and its
plain modules are the pieces of the subnet between two cuts, with a 1x1 convolution on either side where the widths are
not the teacher's.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from distill.blockwise import adapter
from search.blockwise.cuts import Cut
from search.blockwise.maps import Feature
from search.prefix.dependence import layer_names, split
from search.prefix.pieces import Piece, cut
from supernet.families import Family
from supernet.nesting import covering_archs
from supernet.slicing import Rule
from supernet.space import Arch, SearchSpace
from supernet.supernet import Builder, Supernet
from supernet.training.randomness import Stream, part_seed
from supernet.views import no_views

# B batch, C channels, H height, W width, K blocks

PROBE = 64  # pixels a side, at most, of the images that widths are found with


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
        for piece in pieces:
            for layer in piece.layers:
                _register(self, names[id(layer)], layer)
        self._pieces = list(pieces)  # which hold the same layers

    def forward(self, x: Tensor) -> Tensor:
        for piece in self._pieces:
            x = piece.forward(x)  # not called as a module, so that a tracer sees the layers under their names
        return x


def cut_blocks(family: Family, space: SearchSpace, cuts: Sequence[Cut], seed: int = 0) -> list[Block]:
    """The blocks of the architectures `space` of a family that end with each of the `cuts`; see
    `search.blockwise.cuts`. ValueError for a family with `views`."""
    if family.views is not no_views:
        raise ValueError("a family whose tensors have `views` is not cut into blocks, which are supernets of their own")
    names = tuple(place.name for place in cuts)
    blocks = []
    for index, (target, name, scope) in enumerate(cuts):
        paths = space.subspace(scope)
        before = cuts[index - 1].target.channels if index else None
        build = _BlockBuilder(family.build, space, family.in_chans, names, index, before, target.channels)
        build = build.with_adapters(paths)
        net = Supernet(paths, build, _rules(family, build(paths.largest)), seed=part_seed(seed, Stream.BLOCK, index))
        blocks.append(Block(name, target, scope, net))
    return blocks


def parts(model: nn.Module, cuts: Sequence[str]) -> list[list[Piece]]:
    """The pieces of a subnet, in eval mode, for each cut those from the cut before it. ValueError as in `split`."""
    pieces = cut(model)
    return [pieces[part] for part in split(layer_names(model, pieces), cuts)]


@dataclass(frozen=True)
class _BlockBuilder:
    """Builds a block's plain module from a path."""

    build: Builder
    space: SearchSpace
    in_chans: int
    cuts: tuple[str, ...]
    index: int
    teacher_in: int | None  # channels of the teacher's features that the block sees; None: it sees the images
    teacher_out: int
    adapt_in: bool = True
    adapt_out: bool = True

    def __call__(self, path: Arch) -> nn.Module:
        model = self.build(self.space.complete(path)).eval()
        *before, own = parts(model, self.cuts[: self.index + 1])
        in_chs, out_chs = self._widths(before, own)
        modules: dict[str, nn.Module] = {"student": Segment(model, own)}
        if self.adapt_in and self.teacher_in:
            modules = {"before": adapter(self.teacher_in, in_chs), **modules}
        if self.adapt_out:
            modules["after"] = adapter(out_chs, self.teacher_out)
        return nn.Sequential(OrderedDict(modules))

    def with_adapters(self, paths: SearchSpace) -> _BlockBuilder:
        """The same with adapters on the sides where a path's width is not the teacher's."""
        widths = []
        for path in (*covering_archs(paths), paths.smallest):
            *before, own = parts(self.build(self.space.complete(path)).eval(), self.cuts[: self.index + 1])
            widths.append(self._widths(before, own))
        ins, outs = (set(column) for column in zip(*widths))
        return replace(self, adapt_in=ins != {self.teacher_in}, adapt_out=outs != {self.teacher_out})

    @torch.no_grad()
    def _widths(self, before: Sequence[Sequence[Piece]], own: Sequence[Piece]) -> tuple[int, int]:
        """Channels at both ends of the block, whatever the weights."""
        x = torch.zeros(1, self.in_chans, PROBE, PROBE)
        for piece in itertools.chain(*before):
            x = piece(x)
        in_chs = x.shape[1]
        for piece in own:
            x = piece(x)
        return in_chs, x.shape[1]


def _rules(family: Family, largest: nn.Module) -> dict[str, Rule]:
    """The family's slicing rules for the tensors that a block has."""
    rules = {f"student.{pattern}": rule for pattern, rule in family.rules.items()}
    names = list(largest.state_dict())
    return {pattern: rule for pattern, rule in rules.items() if any(fnmatchcase(name, pattern) for name in names)}


def _register(owner: nn.Module, name: str, layer: nn.Module) -> None:
    *path, leaf = name.split(".")
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Sequential())
        owner = owner._modules[part]
    owner.add_module(leaf, layer)
