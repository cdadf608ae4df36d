"""Which choices the parts of a family's subnets depend on, and the spaces of those choices alone."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple
from weakref import WeakKeyDictionary

from torch import nn

from search.prefix.pieces import Piece, cut
from supernet.families import Family
from supernet.nesting import covering_archs, probing_archs
from supernet.skeleton import Assembler, build_skeleton
from supernet.space import Arch, Choice, SearchSpace, Value


class _Link(NamedTuple):
    """A piece of a subnet."""

    layers: tuple[str, ...]  # names of its modules
    key: int  # equal for pieces that compute the same


class Scopes:
    """How the subnets of a family change with each choice, found by changing one at a time."""

    def __init__(self, family: Family, space: SearchSpace) -> None:
        self._space = space
        first = space.largest
        self._skeleton = (
            Assembler(family.build, family.pieces, first) if family.pieces else partial(build_skeleton, family.build)
        )
        self._fingerprints: WeakKeyDictionary[nn.Module, Hashable] = WeakKeyDictionary()
        self._numbers: dict[Hashable, int] = {}
        self._chains: dict[Arch, list[_Link]] = {}
        self._changes = list(single_changes(space))

    def of(self, cuts: Sequence[str]) -> list[set[str]]:
        """For each block, which ends with the module of its cut, the choices that what it computes depends on.

        ValueError for a cut that a subnet does not have, or that is not behind the one before.
        """
        scopes: list[set[str]] = [set() for _ in cuts]
        for name, *archs in self._changes:
            for scope, before, after in zip(scopes, *(self._keys(arch, cuts) for arch in archs)):
                if before != after:
                    scope.add(name)
        for scope in scopes:
            for name in reversed(self._space.choices):  # what decides whether a choice applies
                if name in scope:
                    scope.update(self._space.choices[name].when)
        return scopes

    def check(self, cuts: Sequence[str], scopes: Sequence[set[str]]) -> None:
        """ValueError if `scopes` do not explain what the blocks of random architectures compute."""
        for arch in probing_archs(self._space):
            for index, key in enumerate(self._keys(arch, cuts)):
                path = {name: value for name, value in arch.items() if name in scopes[index]}
                if self._keys(complete(self._space, path), cuts)[index] != key:
                    raise ValueError(
                        f"the block that ends with {cuts[index]!r} depends on more than {', '.join(path)}: its paths "
                        "cannot be told from the rest of the network"
                    )

    def _keys(self, arch: Arch, cuts: Sequence[str]) -> list[list[int]]:
        chain = self._chain(arch)
        return [[link.key for link in chain[part]] for part in split([link.layers for link in chain], cuts)]

    def _chain(self, arch: Arch) -> list[_Link]:
        if arch not in self._chains:
            model = self._skeleton(arch).eval()
            pieces = cut(model, self._fingerprints)
            numbers = [self._numbers.setdefault(piece.key, len(self._numbers)) for piece in pieces]
            self._chains[arch] = list(map(_Link, layer_names(model, pieces), numbers))
        return self._chains[arch]


def parts(model: nn.Module, cuts: Sequence[str]) -> list[list[Piece]]:
    """The pieces of a subnet, in eval mode, up to each cut. ValueError as in `split`."""
    pieces = cut(model)
    return [pieces[part] for part in split(layer_names(model, pieces), cuts)]


def layer_names(model: nn.Module, pieces: Sequence[Piece]) -> list[tuple[str, ...]]:
    """For each piece of `model` the names of the modules that it calls."""
    names = {id(module): name for name, module in model.named_modules()}
    return [tuple(names[id(layer)] for layer in piece.layers) for piece in pieces]


def split(layers: Sequence[Sequence[str]], cuts: Sequence[str]) -> list[slice]:
    """Where the pieces with these layers are that end with each cut and begin behind the one before.

    ValueError for a cut that they do not have, or that is not behind the one before.
    """
    found, start = [], 0
    for name in cuts:
        end = end_of(layers, name)
        if end <= start:
            ends = dict.fromkeys(".".join(own[-1].split(".")[:2]) for own in layers if own)
            raise ValueError(
                f"a subnet cannot be cut behind {name!r}; in their order there are {', '.join(ends)} and what they hold"
            )
        found.append(slice(start, end))
        start = end
    return found


def end_of(layers: Sequence[Sequence[str]], name: str) -> int:
    """The number of pieces up to the last one that calls the module `name` or one within it; 0 if none does."""
    inside = [i for i, own in enumerate(layers) if any(f"{layer}.".startswith(f"{name}.") for layer in own)]
    return inside[-1] + 1 if inside else 0


def subspace(space: SearchSpace, scope: set[str] | frozenset[str]) -> SearchSpace:
    """The space of the choices in `scope` alone; a choice of one value if there are none."""
    choices = {
        name: Choice(choice.values, {parent: values for parent, values in choice.when.items() if parent in scope})
        for name, choice in space.choices.items()
        if name in scope
    }
    return SearchSpace(choices or {"only": (1,)})


def single_changes(space: SearchSpace) -> Iterator[tuple[str, Arch, Arch]]:
    """Two architectures that differ in one choice, after the name of that choice, for every choice and value."""
    for arch in covering_archs(space):
        for name in arch:
            for value in space.choices[name].values:
                if value != arch[name]:
                    yield name, arch, complete(space, {**arch, name: value})


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
