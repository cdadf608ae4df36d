"""Cutting a supernet into blocks that can be trained and rated one by one, at the resolutions of a teacher's features.

A block is a supernet of its own: its architectures, the *paths*, are what the choices that matter to it may be, and its
plain modules are the pieces of the subnet between two cuts, with a 1x1 convolution on either side where the widths are
not the teacher's.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.blockwise import adapter
from search.pieces import Piece, cut
from supernet.families import Family
from supernet.nesting import covering_archs, probing_archs
from supernet.skeleton import build_skeleton
from supernet.slicing import Rule
from supernet.space import Arch, Choice, SearchSpace, Value
from supernet.supernet import Builder, Supernet

# B batch, C channels, H height, W width, K blocks

PROBE = 64  # pixels a side, at most, of the images that widths are found with


class Feature(NamedTuple):
    """What a network computes at some point: [B, C, H, W]."""

    name: str
    channels: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Block:
    """A part of a supernet between two cuts."""

    name: str  # the module that it ends with
    target: Feature  # of the teacher
    scope: frozenset[str]  # the choices that it depends on
    net: Supernet  # whose architectures are the paths

    def path(self, arch: Arch) -> Arch:
        """What an architecture of the whole network is in this block."""
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


def cut_blocks(
    family: Family, space: SearchSpace, features: Sequence[Feature], cuts: Sequence[str] = (), seed: int = 0
) -> list[Block]:
    """The blocks of the architectures `space` of a family that end at the resolutions of a teacher's `features`.

    `cuts` are names of modules of the subnets, one for each feature; by default a block ends with the last module at
    each resolution that the teacher has a feature of (features of other resolutions, or of one pixel, are passed over;
    see `matching`). ValueError, listing what was found, if they do not match in number or resolution.
    """
    own = outputs(family, space.largest)
    if cuts:
        _check(own, features, cuts)
    else:
        features, cuts = matching(family, space, features)
    scopes = find_scopes(family, space, cuts)
    blocks = []
    for index, (scope, feature) in enumerate(zip(scopes, features)):
        paths = subspace(space, scope)
        before = features[index - 1].channels if index else None
        build = _BlockBuilder(family.build, space, family.in_chans, tuple(cuts), index, before, feature.channels)
        build = build.with_adapters(paths)
        net = Supernet(paths, build, _rules(family, build(paths.largest)), seed=seed + index)
        blocks.append(Block(cuts[index], feature, frozenset(scope), net))
    return blocks


def matching(family: Family, space: SearchSpace, features: Sequence[Feature]) -> tuple[list[Feature], list[str]]:
    """The teacher's features at resolutions that the subnets have too, and where the subnets have them.

    ValueError if there is none.
    """
    archs = list(dict.fromkeys([*covering_archs(space), *probing_archs(space, 2)]))
    last: list[dict[tuple[int, int], str]] = [
        {feature.size: feature.name for feature in outputs(family, arch)} for arch in archs
    ]
    chosen = {feature.size: feature for feature in features if feature.size in last[0] and max(feature.size) > 1}
    if not chosen:
        raise ValueError(
            f"the teacher has no features at the resolutions of the supernet: it has {_list(features)}, "
            f"the supernet {_list(outputs(family, space.largest))}"
        )
    return list(chosen.values()), [_common([names[size] for names in last]) for size in chosen]


def outputs(family: Family, arch: Arch) -> list[Feature]:
    """The maps that the pieces of a subnet compute, named after modules; of several of one name the last."""
    model = build_skeleton(family.build, arch).eval()
    names = {id(module): name for name, module in model.named_modules()}
    size = family.resolution(arch)
    x = torch.empty(2, family.in_chans, size, size, device="meta")
    found = {}
    for piece in cut(model):
        x = piece(x)
        if x.dim() == 4 and len(piece.layers):
            name = names[id(piece.layers[-1])]
            found[name] = Feature(name, x.shape[1], tuple(x.shape[2:]))
    return list(found.values())


def find_scopes(family: Family, space: SearchSpace, cuts: Sequence[str]) -> list[set[str]]:
    """For each block the choices that what it computes depends on.

    Found by changing one choice at a time, in architectures that together have every value. ValueError if that does
    not explain what the blocks of random architectures compute.
    """

    def keys(arch: Arch) -> list[tuple]:
        return [tuple(piece.key for piece in part) for part in parts(build_skeleton(family.build, arch).eval(), cuts)]

    scopes: list[set[str]] = [set() for _ in cuts]
    for arch in covering_archs(space):
        own = keys(arch)
        for name in arch:
            for value in (value for value in space.choices[name].values if value != arch[name]):
                changed = keys(complete(space, {**arch, name: value}))
                for scope, before, after in zip(scopes, own, changed):
                    if before != after:
                        scope.add(name)
    for scope in scopes:
        for name in reversed(space.choices):  # what decides whether a choice applies
            if name in scope:
                scope.update(space.choices[name].when)
    for arch in probing_archs(space):
        for index, key in enumerate(keys(arch)):
            path = {name: value for name, value in arch.items() if name in scopes[index]}
            if keys(complete(space, path))[index] != key:
                raise ValueError(
                    f"the block that ends with {cuts[index]!r} depends on more than {', '.join(path)}: its paths "
                    "cannot be told from the rest of the network"
                )
    return scopes


def parts(model: nn.Module, cuts: Sequence[str]) -> list[list[Piece]]:
    """The pieces of a subnet up to each cut.

    ValueError for a cut that it does not have, or that is not behind the one before.
    """
    pieces = cut(model)
    names = {id(module): name for name, module in model.named_modules()}
    found, start = [], 0
    for name in cuts:
        inside = [
            index
            for index, piece in enumerate(pieces)
            if any(f"{names[id(layer)]}.".startswith(f"{name}.") for layer in piece.layers)
        ]
        if not inside or inside[-1] < start:
            ends = dict.fromkeys(".".join(names[id(p.layers[-1])].split(".")[:2]) for p in pieces if len(p.layers))
            raise ValueError(
                f"a subnet cannot be cut behind {name!r}; in their order there are {', '.join(ends)} and what they hold"
            )
        found.append(pieces[start : inside[-1] + 1])
        start = inside[-1] + 1
    return found


def subspace(space: SearchSpace, scope: set[str]) -> SearchSpace:
    """The space of the choices in `scope` alone; a choice of one value if there are none."""
    choices = {
        name: Choice(choice.values, {parent: values for parent, values in choice.when.items() if parent in scope})
        for name, choice in space.choices.items()
        if name in scope
    }
    return SearchSpace(choices or {"only": (1,)})


def complete(space: SearchSpace, path: Mapping[str, Value]) -> Arch:
    """The architecture that has the values of `path`, and for all other choices the last value."""
    chosen = {name: value for name, value in path.items() if name in space.choices}
    return space.validate({name: choice.values[-1] for name, choice in space.choices.items()} | chosen)


def all_archs(space: SearchSpace) -> Iterator[Arch]:
    """Every architecture of the space, in the order of `encode`."""

    def extend(values: dict[str, Value], names: Sequence[str]) -> Iterator[Arch]:
        if not names:
            yield Arch(values)
            return
        choice = space.choices[names[0]]
        if any(values.get(parent) not in allowed for parent, allowed in choice.when.items()):
            yield from extend(values, names[1:])
            return
        for value in choice.values:
            yield from extend({**values, names[0]: value}, names[1:])

    yield from extend({}, tuple(space.choices))


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
        model = self.build(complete(self.space, path)).eval()
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
            *before, own = parts(self.build(complete(self.space, path)).eval(), self.cuts[: self.index + 1])
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


def _common(names: Sequence[str]) -> str:
    """The innermost module that all named modules are in."""
    columns = zip(*(name.split(".") for name in names))
    return ".".join(column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


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


def _check(own: Sequence[Feature], features: Sequence[Feature], cuts: Sequence[str]) -> None:
    if len(cuts) != len(features):
        raise ValueError(
            f"the teacher has {len(features)} features ({_list(features)}), but the supernet is cut {len(cuts)} times "
            f"({', '.join(cuts)}): there is one feature for every block"
        )
    for name, feature in zip(cuts, features):
        inside = [mine for mine in own if f"{mine.name}.".startswith(f"{name}.")]
        if not inside:
            raise ValueError(f"a subnet has no map at {name!r}; it has {_list(own)}")
        if inside[-1].size != feature.size:
            raise ValueError(
                f"the block that ends with {name!r} has maps of {_pixels(inside[-1])} pixels, and the teacher's at "
                f"{feature.name!r} have {_pixels(feature)}: the teacher has {_list(features)}, the subnet {_list(own)}"
            )


def _pixels(feature: Feature) -> str:
    return "x".join(map(str, feature.size))


def _list(features: Sequence[Feature]) -> str:
    return ", ".join(f"{feature.name} ({_pixels(feature)})" for feature in features)
