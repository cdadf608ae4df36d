"""Which choices the piece at a place of a subnet depends on, and the pieces of all subnets from those of a few.

Which piece follows another, and what a piece is like, depends on few of the choices each: on the depth of the stage, on
the widths and the kernel size of the layer. A family may say so (`Family.pieces`); otherwise it is found by changing
one choice at a time. Then some hundred subnets hold the pieces of many thousands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import NamedTuple
from weakref import WeakKeyDictionary

from torch import nn

from search.prefix.pieces import Piece, cut
from supernet.families import Family
from supernet.nesting import covering_archs, probing_archs
from supernet.skeleton import Assembler, build_skeleton
from supernet.space import Arch, SearchSpace, Value
from supernet.supernet import Supernet
from supernet.views import Views, no_views

Place = tuple[str, int]  # of a piece: the name of its last layer, or of that before it, and how many have it already
Fact = tuple[str, Place]  # "after" a place, or the "piece" there
Names = Callable[[Arch], Mapping[str, Hashable]]  # submodules in their order, and what determines each

START: Place = ("", 0)
GAIN = 4  # times fewer subnets than architectures, or putting chains together is not worth it


class Link(NamedTuple):
    """A piece of a subnet, and where it is."""

    place: Place
    layers: tuple[str, ...]  # names of the piece's modules
    piece: Piece


def chains(net: Supernet, inputs: int = 1) -> Callable[[Arch], list[Piece]]:
    """The pieces of a subnet of `net`, which is called with so many `inputs`, in order: those of
    `cut(net.skeleton(arch), ...)`.

    They are put together from pieces of other subnets where `Dependence.explains` these; otherwise each subnet is built
    and cut.
    """
    dependence = Dependence(net.space, net.skeleton, views=net.views, inputs=inputs)
    return dependence.chain if dependence.explains() else dependence.cut


def told(net: Supernet, inputs: int = 1) -> Callable[[Arch], list[Piece]] | None:
    """The same where the family of `net` says what its submodules are determined by, which a few subnets bear out; None
    where it does not."""
    if net.pieces_of is None or net.views is not no_views:
        return None
    dependence = Dependence(net.space, net.skeleton, net.pieces_of, inputs=inputs)
    return dependence.chain if dependence.explains() else None


class Dependence:
    """The pieces of the subnets of `space`, and the choices that each depends on.

    `skeleton` gives an architecture's module without weights. `pieces`, if given, names submodules and what determines
    them, as in `supernet.skeleton.Assembler`, so that no subnet is built to find out what depends on what. `views` are
    those of tensors that are no mere slices (`supernet.views`), and `inputs` how many subnets are called with.
    """

    def __init__(
        self,
        space: SearchSpace,
        skeleton: Callable[[Arch], nn.Module],
        pieces: Names | None = None,
        views: Views = no_views,
        inputs: int = 1,
    ) -> None:
        self._space, self._skeleton, self._views, self._inputs = space, skeleton, views, inputs
        self._fingerprints: WeakKeyDictionary[nn.Module, Hashable] = WeakKeyDictionary()
        self._chains: dict[Arch, list[Link]] = {}  # of the subnets that were looked at
        self._known: dict[tuple[Fact, tuple[Value | None, ...]], Piece | Place | None] = {}
        self._scopes = self._told(pieces) if pieces else self._found()
        for arch, chain in self._chains.items():
            self._learn(arch, chain)

    @classmethod
    def of_family(cls, family: Family, space: SearchSpace) -> Dependence:
        """The dependence of the architectures `space` of a family."""
        inputs = len(family.example(space.largest))
        if not family.pieces:
            return cls(space, partial(build_skeleton, family.build), views=family.views, inputs=inputs)
        skeleton = Assembler(family.build, family.pieces, space.largest, family.views)
        told = family.pieces if family.views is no_views else None  # which say nothing of views
        return cls(space, skeleton, told, family.views, inputs)

    def chain(self, arch: Arch) -> list[Piece]:
        """The pieces of the subnet `arch`, in order: the same as `cut` gives, put together from pieces of other
        subnets.

        Pieces of several architectures are the same objects. A subnet is built where it has a piece or a place that no
        subnet before it had. See `explains` for what this rests on.
        """
        pieces, place = [], START
        try:
            while (place := self._find(("after", place), arch)) is not None:
                pieces.append(self._find(("piece", place), arch))
        except KeyError:  # a place that this subnet does not have: what was found does not explain it
            return self.cut(arch)
        return pieces

    def cut(self, arch: Arch) -> list[Piece]:
        """The pieces of the subnet `arch`, in order, cut out of the subnet itself, which is built."""
        return [link.piece for link in self._links(arch)]

    def explains(self) -> bool:
        """Whether it pays and is right to put chains together: a few random subnets have the pieces that they should,
        and no piece depends on nearly all choices."""
        sizes = {name: len(choice.values) for name, choice in self._space.choices.items()}
        most = max((math.prod(map(sizes.__getitem__, names)) for names in self._scopes.values()), default=1)
        return GAIN * most <= self._space.size and all(
            [piece.key for piece in self.chain(arch)] == [piece.key for piece in self.cut(arch)]
            for arch in probing_archs(self._space)
        )

    def scopes(self, cuts: Sequence[str]) -> list[set[str]]:
        """For each block, which ends with the module of its cut, the choices that what it computes depends on.

        ValueError for a cut that a subnet does not have, or that is not behind the one before.
        """
        scopes: list[set[str]] = [set() for _ in cuts]
        for arch in covering_archs(self._space):
            chain = self._remembered(arch)
            before = [START, *(link.place for link in chain)]
            for scope, part in zip(scopes, split([link.layers for link in chain], cuts)):
                for previous, link in zip(before[part], chain[part]):
                    for fact in (("after", previous), ("piece", link.place)):
                        scope.update(self._scopes.get(fact, ()))
        for scope in scopes:
            for name in reversed(self._space.choices):  # what decides whether a choice applies
                if name in scope:
                    scope.update(self._space.choices[name].when)
        return scopes

    def check(self, cuts: Sequence[str], scopes: Sequence[set[str]]) -> None:
        """ValueError if `scopes` do not explain what the blocks of random architectures compute."""
        for arch in probing_archs(self._space):
            for index, keys in enumerate(self._keys(arch, cuts)):
                path = {name: value for name, value in arch.items() if name in scopes[index]}
                if self._keys(self._space.complete(path), cuts)[index] != keys:
                    raise ValueError(
                        f"the block that ends with {cuts[index]!r} depends on more than {', '.join(path)}: its paths "
                        "cannot be told from the rest of the network"
                    )

    def _keys(self, arch: Arch, cuts: Sequence[str]) -> list[list[Hashable]]:
        chain = self._remembered(arch)
        return [[link.piece.key for link in chain[part]] for part in split([link.layers for link in chain], cuts)]

    def _find(self, fact: Fact, arch: Arch) -> Piece | Place | None:
        if self._entry(fact, arch) not in self._known:
            self._learn(arch, self._links(arch))
        return self._known[self._entry(fact, arch)]

    def _learn(self, arch: Arch, chain: Sequence[Link]) -> None:
        for fact, value in facts(chain).items():
            self._known.setdefault(self._entry(fact, arch), value)

    def _entry(self, fact: Fact, arch: Arch) -> tuple[Fact, tuple[Value | None, ...]]:
        """The fact and the values that decide it: all where nothing is known of it."""
        return fact, tuple(arch.get(name) for name in self._scopes.get(fact, self._space.choices))

    def _remembered(self, arch: Arch) -> list[Link]:
        if arch not in self._chains:
            self._chains[arch] = self._links(arch)
        return self._chains[arch]

    def _links(self, arch: Arch) -> list[Link]:
        model = self._skeleton(arch).eval()
        pieces = cut(model, self._fingerprints, self._views(arch), self._inputs)
        links, taken, place = [], set(), START
        for piece, layers in zip(pieces, layer_names(model, pieces)):
            place = (layers[-1] if layers else place[0], 0)
            while place == START or place in taken:
                place = place[0], place[1] + 1
            taken.add(place)
            links.append(Link(place, layers, piece))
        return links

    def _found(self) -> dict[Fact, list[str]]:
        """The choices that each fact depends on, by changing one at a time."""

        def facts_of(arch: Arch) -> dict[Fact, Hashable]:
            return {f: getattr(value, "key", value) for f, value in facts(self._remembered(arch)).items()}

        return _differences(self._space, facts_of)

    def _told(self, pieces: Names) -> dict[Fact, list[str]]:
        """The same by what determines the submodules that `pieces` names: what lies in none is in all subnets alike."""

        def told(arch: Arch) -> dict[Fact, Hashable]:
            named = pieces(arch)
            following = zip(["", *named], [*named, None])
            return {("piece", (n, 0)): key for n, key in named.items()} | {("after", (n, 0)): b for n, b in following}

        scopes = _differences(self._space, told)
        named = {name for arch in covering_archs(self._space) for name in pieces(arch)}
        found: dict[Fact, list[str]] = {}
        for arch in covering_archs(self._space):
            chain = self._remembered(arch)
            places = [START, *(link.place for link in chain)]
            for place, following in zip(places, [*places[1:], None]):
                inside = _within(named, place[0])
                own = scopes.get(("piece", (inside, 0)), [])
                if place != START:
                    found["piece", place] = own
                left = following is None or _within(named, following[0]) != inside  # for whatever comes behind it
                choices = scopes.get(("after", (inside, 0)), []) if left else own
                found["after", place] = sorted({*choices, *found.get(("after", place), ())})
        return found


def facts(chain: Sequence[Link]) -> dict[Fact, Piece | Place | None]:
    """All that there is to know of a subnet: which place comes after each, and the piece there."""
    places = [START, *(link.place for link in chain), None]
    after = {("after", place): following for place, following in pairwise(places)}
    return after | {("piece", link.place): link.piece for link in chain}


def layer_names(model: nn.Module, pieces: Sequence[Piece]) -> list[tuple[str, ...]]:
    """For each piece of `model` the names of the modules that it calls."""
    names = {id(module): name for name, module in model.named_modules()}
    return [tuple(names[id(layer)] for layer in piece.layers) for piece in pieces]


def split(layers: Sequence[Sequence[str]], cuts: Sequence[str]) -> list[slice]:
    """For each cut the slice of the pieces, of which `layers` are given, that begins behind the cut before it and ends
    with it.

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


def single_changes(space: SearchSpace) -> Iterator[tuple[str, Arch, Arch]]:
    """Two architectures that differ in one choice, after the name of that choice, for every choice and value."""
    for arch in covering_archs(space):
        for name in arch:
            for value in space.choices[name].values:
                if value != arch[name]:
                    yield name, arch, space.complete({**arch, name: value})


def _differences(space: SearchSpace, facts_of: Callable[[Arch], Mapping[Fact, Hashable]]) -> dict[Fact, list[str]]:
    """The choices with which each fact changes, of those that both architectures have."""
    facts_of = cache(facts_of)
    scopes: dict[Fact, set[str]] = {}
    for name, *archs in single_changes(space):
        own, changed = map(facts_of, archs)
        for fact in own:
            scopes.setdefault(fact, set())
        for fact in own.keys() & changed.keys():
            if own[fact] != changed[fact]:
                scopes[fact].add(name)
    return {fact: sorted(names) for fact, names in scopes.items()}


def _within(named: Iterable[str], layer: str) -> str:
    """The one of the submodules `named` that a layer is or lies in; "" if it is in none."""
    return next((name for name in named if f"{layer}.".startswith(f"{name}.")), "")
