"""The chains of pieces that a supernet's architectures are, without building every one of them.

Which piece follows another in a subnet, and what a piece is like, depends on few of the choices each: on the depth of
the stage, on the widths and the kernel size of the layer. Which ones is found by changing one choice at a time; then
some hundred subnets hold the pieces of many thousands.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from weakref import WeakKeyDictionary

from torch import nn

from search.prefix.pieces import Piece, cut
from search.prefix.scopes import single_changes
from supernet.nesting import probing_archs
from supernet.space import Arch, Value
from supernet.supernet import Supernet

Place = tuple[str, int]  # of a piece: the name of its last layer, or of that before it, and how many have it already
Fact = tuple[str, Place]  # "after" a place, or the "piece" there

START: Place = ("", 0)
GAIN = 4  # times fewer subnets than architectures, or it is not worth it


class Chains:
    """`chains(arch)` are the pieces of the subnet `arch`, in order: those of `cut(net.skeleton(arch))`.

    Pieces of several architectures are the same objects. Every architecture is built and cut by itself where the
    choices that were found do not explain the pieces of random ones, or where some piece depends on nearly all choices,
    so that there would be little to gain.
    """

    def __init__(self, net: Supernet) -> None:
        self._net = net
        self._fingerprints: WeakKeyDictionary[nn.Module, Hashable] = WeakKeyDictionary()
        self._known: dict[tuple[Fact, tuple[Value | None, ...]], Piece | Place | None] = {}
        self._scopes: dict[Fact, list[str]] = {}  # the choices that each fact depends on
        self._apart = False  # whether every architecture is built by itself
        self._look_around()
        sizes = {name: len(choice.values) for name, choice in net.space.choices.items()}
        most = max((math.prod(map(sizes.__getitem__, names)) for names in self._scopes.values()), default=1)
        self._apart = GAIN * most > net.space.size or any(
            [piece.key for piece in self(arch)] != [piece.key for piece in self._cut(arch)]
            for arch in probing_archs(net.space)
        )

    def __call__(self, arch: Arch) -> list[Piece]:
        if self._apart:
            return self._cut(arch)
        chain, place = [], START
        try:
            while (place := self._find(("after", place), arch)) is not None:
                chain.append(self._find(("piece", place), arch))
        except KeyError:  # a place that this subnet does not have: what was found does not explain it
            return self._cut(arch)
        return chain

    def _find(self, fact: Fact, arch: Arch) -> Piece | Place | None:
        if self._entry(fact, arch) not in self._known:
            self._learn(arch, self._facts(arch))
        return self._known[self._entry(fact, arch)]

    def _learn(self, arch: Arch, facts: Mapping[Fact, Piece | Place | None]) -> None:
        for fact, value in facts.items():
            self._known.setdefault(self._entry(fact, arch), value)

    def _entry(self, fact: Fact, arch: Arch) -> tuple[Fact, tuple[Value | None, ...]]:
        """The fact and the values that decide it: all where nothing is known of it."""
        return fact, tuple(arch.get(name) for name in self._scopes.get(fact, self._net.space.choices))

    def _cut(self, arch: Arch) -> list[Piece]:
        return cut(self._net.skeleton(arch), self._fingerprints)

    def _facts(self, arch: Arch) -> dict[Fact, Piece | Place | None]:
        """All that there is to know of a subnet, which is built and cut."""
        names = {id(module): name for name, module in self._net.skeleton(arch).named_modules()}
        facts: dict[Fact, Piece | Place | None] = {}
        place = START
        for piece in self._cut(arch):
            before, place = place, (names[id(piece.layers[-1])] if len(piece.layers) else place[0], 0)
            while place == START or ("piece", place) in facts:
                place = place[0], place[1] + 1
            facts |= {("after", before): place, ("piece", place): piece}
        return facts | {("after", place): None}

    def _look_around(self) -> None:
        """Find the choices that each fact depends on."""
        seen: dict[Arch, dict[Fact, Piece | Place | None]] = {}
        scopes: dict[Fact, set[str]] = {}

        def facts_of(arch: Arch) -> dict[Fact, Hashable]:
            if arch not in seen:
                seen[arch] = self._facts(arch)
            return {fact: getattr(value, "key", value) for fact, value in seen[arch].items()}

        for name, *archs in single_changes(self._net.space):
            own, changed = map(facts_of, archs)
            for fact in own:
                scopes.setdefault(fact, set())
            for fact in own.keys() & changed.keys():
                if own[fact] != changed[fact]:
                    scopes[fact].add(name)
        self._scopes = {fact: sorted(names) for fact, names in scopes.items()}
        for arch, facts in seen.items():
            self._learn(arch, facts)
