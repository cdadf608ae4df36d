"""Search spaces and architectures: what may vary, as plain values.

An architecture (`Arch`) is an immutable mapping from the names of choices to values. A `SearchSpace` says which
choices there are, which values each may take, and when a choice applies at all. Nothing here touches a model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

# n architectures, c choices

Value = int | float | str
INACTIVE = -1  # the code of a choice that does not apply


class Arch(Mapping[str, Value]):
    """An architecture: an immutable, hashable mapping of choice to value, holding the active choices only.

    Two architectures are equal when they hold the same values, whatever the order. `to_json` and `from_json` are
    inverse.
    """

    __slots__ = ("_hash", "_values")

    def __init__(self, values: Mapping[str, Value]):
        self._values = dict(values)
        self._hash = hash(frozenset(self._values.items()))

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        # for others of its kind faster than what it inherits
        return self._values == other._values if isinstance(other, Arch) else super().__eq__(other)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Arch({self._values})"

    def __reduce__(self):
        # the hash of a string differs from process to process, so it is computed anew
        return Arch, (self._values,)

    def to_json(self) -> str:
        return json.dumps(self._values)

    @classmethod
    def from_json(cls, text: str) -> Arch:
        """The architecture written in `text`; ValueError if that is not a JSON object of numbers and strings."""
        values = _json_object(text, "an architecture")
        if not all(isinstance(value, Value) for value in values.values()):
            raise ValueError(f"an architecture is a JSON object of numbers and strings, not {text[:80]!r}")
        return cls(values)


@dataclass(frozen=True)
class Choice:
    """The values that one choice may take, and when it applies.

    Numbers are *ordered*, given in increasing order: a larger value makes tensors larger, never another network. Where
    it makes the network smaller, as a larger patch does, the choice is `falling`, and the numbers are given in
    decreasing order. Strings are *unordered*, such as operations, which exchange parts of the network.

    `when` maps names of choices declared earlier to the values under which this choice is active. It is inactive if any
    of the named choices has another value or is inactive itself.
    """

    values: Sequence[Value]
    when: Mapping[str, Sequence[Value]] = field(default_factory=dict)
    falling: bool = False

    def __post_init__(self):
        values = tuple(self.values)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "when", MappingProxyType({name: tuple(v) for name, v in self.when.items()}))
        if not values:
            raise ValueError("a choice needs at least one value")
        are_strings = all(isinstance(value, str) for value in values)
        if not are_strings and not all(isinstance(value, int | float) for value in values):
            raise ValueError(f"the values of a choice are all numbers or all strings, not {values}")
        if any(isinstance(value, float) and not math.isfinite(value) for value in values):
            raise ValueError(f"the values of a choice are finite, unlike {values}")
        if len(set(values)) != len(values):
            raise ValueError(f"the values of a choice must differ, but {values} has a value twice")
        if are_strings:
            return
        if list(values) != sorted(values, reverse=self.falling):
            order, right = ("decreasing" if self.falling else "increasing"), sorted(values, reverse=self.falling)
            raise ValueError(f"numbers are given in {order} order: {tuple(right)}, not {values}")

    @property
    def ordered(self) -> bool:
        return not isinstance(self.values[0], str)

    def __reduce__(self):
        return Choice, (self.values, dict(self.when), self.falling)


class SearchSpace:
    """The architectures that a supernet holds.

    `choices` maps each name to its values, or to a `Choice` where it depends on others. The order of declaration is
    the order of the columns in `encode`; a choice is declared after those that it depends on.

    >>> space = SearchSpace({"depth": (1, 2), "kernel_size.1": Choice((3, 5), when={"depth": (2,)})})
    >>> space.size
    3
    """

    def __init__(self, choices: Mapping[str, Sequence[Value] | Choice]):
        if not choices:
            raise ValueError("a search space needs at least one choice")
        self.choices: Mapping[str, Choice] = MappingProxyType(
            {name: c if isinstance(c, Choice) else Choice(c) for name, c in choices.items()}
        )
        declared: dict[str, Choice] = {}
        for name, choice in self.choices.items():
            for parent, values in choice.when.items():
                if parent not in declared:
                    raise ValueError(f"choice {name!r} depends on {parent!r}, which is not declared before it")
                if unknown := [v for v in values if v not in declared[parent].values]:
                    raise ValueError(
                        f"choice {name!r} depends on {parent!r} being {unknown[0]!r}, "
                        f"which is none of its values {declared[parent].values}"
                    )
            declared[name] = choice
        self._columns = self._make_columns()
        # parents are encoded for every child, and of many children of parents that are alike, many are equal
        self._known_codes_of = lru_cache(maxsize=10_000)(lambda arch: np.array(self._codes_of(arch), dtype=np.int64))
        self._known_child = lru_cache(maxsize=10_000)(
            lambda codes: self._from_codes(np.frombuffer(codes, dtype=np.int64))
        )
        self._cardinalities = np.array([len(c.values) for c in self.choices.values()])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SearchSpace) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        return f"SearchSpace({len(self.choices)} choices, {self.size:.3g} architectures)"

    def __reduce__(self):
        return SearchSpace, (dict(self.choices),)

    def to_json(self) -> str:
        """The space as JSON: `from_json` reads it back, and equal spaces have equal texts."""
        return json.dumps(
            {
                n: {"values": c.values, "when": dict(sorted(c.when.items()))} | ({"falling": True} if c.falling else {})
                for n, c in self.choices.items()
            }
        )

    @classmethod
    def from_json(cls, text: str) -> SearchSpace:
        """The space that `to_json` wrote as `text`; ValueError, naming the choice, if it is none."""
        choices = _json_object(text, "a search space")
        for name, choice in choices.items():
            lists = (
                isinstance(choice, dict)
                and choice.keys() - {"falling"} == {"values", "when"}
                and isinstance(choice["when"], dict)
                and isinstance(choice.get("falling", False), bool)
            )
            if not lists or not all(isinstance(own, list) for own in (choice["values"], *choice["when"].values())):
                raise ValueError(
                    f"choice {name!r} is an object with a list of values and an object of lists when, not "
                    f"{str(choice)[:80]}"
                )
        return cls({name: Choice(**choice) for name, choice in choices.items()})

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that tell this space from others; written into files that belong to it."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    @cached_property
    def size(self) -> int:
        """The exact number of distinct architectures.

        Counted choice by choice; what is remembered of an unfinished architecture is the values that later choices
        still depend on, so that the cost is that of the dependencies, not of the space.
        """
        last_use = {p: i for i, c in enumerate(self.choices.values()) for p in c.when}
        counts: Counter[frozenset] = Counter({frozenset(): 1})
        for index, (name, choice) in enumerate(self.choices.items()):
            following: Counter[frozenset] = Counter()
            for state, count in counts.items():
                known = dict(state)
                for value in choice.values if _is_active(choice, known) else (None,):
                    needed = {n: v for n, v in {**known, name: value}.items() if last_use.get(n, -1) > index}
                    following[frozenset(needed.items())] += count
            counts = following
        return counts.total()

    @property
    def largest(self) -> Arch:
        """The last value of every choice."""
        return self._canonical({name: choice.values[-1] for name, choice in self.choices.items()})

    @property
    def smallest(self) -> Arch:
        """The first value of every choice."""
        return self._canonical({name: choice.values[0] for name, choice in self.choices.items()})

    def restrict(self, choices: Mapping[str, Sequence[Value]]) -> SearchSpace:
        """The part of this space in which the named choices keep the given values only.

        Its architectures are architectures of this space. ValueError for an unknown choice or value.
        """
        for name, values in choices.items():
            for value in values:
                self._check_value(name, value)
        kept = {name: tuple(choices.get(name, choice.values)) for name, choice in self.choices.items()}
        return SearchSpace(
            {
                name: replace(
                    choice,
                    values=kept[name],
                    when={p: [v for v in values if v in kept[p]] for p, values in choice.when.items()},
                )
                for name, choice in self.choices.items()
            }
        )

    def subspace(self, names: Collection[str]) -> SearchSpace:
        """The space of the choices `names` alone, which apply whatever the others are; where there are none, a space of
        one architecture, whose only choice is named "only"."""
        choices = {
            name: replace(choice, when={parent: values for parent, values in choice.when.items() if parent in names})
            for name, choice in self.choices.items()
            if name in names
        }
        return SearchSpace(choices or {"only": (1,)})

    def complete(self, part: Mapping[str, Value]) -> Arch:
        """The architecture that has the values of `part`, and the last value of every other choice.

        Names that are no choices of this space, as the architecture of an empty `subspace` has, are passed over.
        ValueError for a value that is not one of its choice's.
        """
        chosen = {name: value for name, value in part.items() if name in self.choices}
        return self.validate({name: choice.values[-1] for name, choice in self.choices.items()} | chosen)

    def __iter__(self) -> Iterator[Arch]:
        """Every architecture, in the order of `encode`."""

        def extend(values: dict[str, Value], names: Sequence[str]) -> Iterator[Arch]:
            if not names:
                yield Arch(values)
                return
            choice = self.choices[names[0]]
            if not _is_active(choice, values):
                yield from extend(values, names[1:])
                return
            for value in choice.values:
                yield from extend({**values, names[0]: value}, names[1:])

        return extend({}, tuple(self.choices))

    def validate(self, arch: Mapping[str, Value]) -> Arch:
        """`arch` as a canonical Arch of this space: choices in order, inactive ones dropped.

        Raises ValueError, naming the choice and what would be right, if a value is not one of its choice's, an
        active choice is missing, or a name is unknown.
        """
        for name, value in arch.items():
            self._check_value(name, value)
        canonical = self._canonical(arch)
        if missing := [name for name, value in canonical.items() if value is None]:
            raise ValueError(
                f"the architecture has no {missing[0]!r}; it needs one of {self.choices[missing[0]].values}"
            )
        return canonical

    def sample(self, generator: np.random.Generator) -> Arch:
        """An architecture with every active choice drawn uniformly from its values, independently."""
        return self._from_codes(generator.integers(self._cardinalities))

    def mutate(self, arch: Arch, generator: np.random.Generator, rate: float) -> Arch:
        """`arch` with each active choice replaced, with probability `rate`, by another of its values, uniformly.

        Choices that become active are drawn uniformly.
        """
        return self._from_codes(self._mutated(self._known_codes_of(arch), generator, rate))

    def mutants(self, archs: Sequence[Arch], generator: np.random.Generator, rate: float) -> list[Arch]:
        """Each of `archs` after `mutate`, all at once, which takes a tenth of the time."""
        return self._children(self._mutated(self.encode(archs), generator, rate))

    def crossover(self, a: Arch, b: Arch, generator: np.random.Generator) -> Arch:
        """A child with each choice from `a` or `b` with equal probability.

        A choice active in one parent alone comes from that parent; a choice active in neither is drawn uniformly.
        """
        return self._from_codes(self._crossed(self._known_codes_of(a), self._known_codes_of(b), generator))

    def crossovers(self, a: Sequence[Arch], b: Sequence[Arch], generator: np.random.Generator) -> list[Arch]:
        """The `crossover` of each pair of `a` and `b`, all at once, which takes a tenth of the time."""
        return self._children(self._crossed(self.encode(a), self.encode(b), generator))

    def encode(self, archs: Sequence[Arch]) -> np.ndarray:
        """Integer codes [n, c]: the index of each value among its choice's values, -1 where inactive.

        Distinct architectures have distinct codes. Raises ValueError for an architecture of another space.
        """
        codes = [self._known_codes_of(arch) for arch in archs]
        return np.array(codes, dtype=np.int64).reshape(len(codes), len(self.choices))

    def decode(self, codes: np.ndarray) -> list[Arch]:
        """The architectures with these codes [n, c]; the inverse of `encode`.

        Codes of choices that turn out inactive are ignored, so that any codes within range may be decoded.
        """
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != len(self.choices):
            raise ValueError(f"codes have shape [n, {len(self.choices)}] in this space, not {list(codes.shape)}")
        return [self._from_codes(row) for row in codes]

    def _mutated(self, codes: np.ndarray, generator: np.random.Generator, rate: float) -> np.ndarray:
        """The codes of mutants, [c] or [n, c] as `codes` are."""
        if not 0 <= rate <= 1:
            raise ValueError(f"the mutation rate is a probability, not {rate}")
        fresh = generator.integers(self._cardinalities, size=codes.shape)
        changes = generator.random(codes.shape) < rate
        # to one of the k - 1 other values
        steps = generator.integers(1, np.maximum(self._cardinalities, 2), size=codes.shape)
        mutated = np.where(codes == INACTIVE, fresh, np.where(changes, codes + steps, codes))
        return mutated % self._cardinalities

    def _crossed(self, first: np.ndarray, second: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The codes of children of two parents each, [c] or [n, c] as those of the parents are."""
        fresh = generator.integers(self._cardinalities, size=first.shape)
        picked = np.where(generator.random(first.shape) < 0.5, first, second)
        picked = np.where(picked == INACTIVE, np.maximum(first, second), picked)
        return np.where(picked == INACTIVE, fresh, picked)

    def _children(self, codes: np.ndarray) -> list[Arch]:
        """The architectures with these codes [n, c], which children of the same parents often have in common."""
        for index, column in enumerate(self._columns):  # so that equal ones have equal codes
            for parent, allowed in column.when:
                codes[~np.isin(codes[:, parent], list(allowed)), index] = INACTIVE
        return [self._known_child(row.tobytes()) for row in codes]

    def _make_columns(self) -> list[_Column]:
        codes = {name: {v: code for code, v in enumerate(c.values)} for name, c in self.choices.items()}
        position = {name: index for index, name in enumerate(self.choices)}
        return [
            _Column(
                name,
                choice.values,
                codes[name],
                [(position[p], frozenset(codes[p][v] for v in values)) for p, values in choice.when.items()],
            )
            for name, choice in self.choices.items()
        ]

    def _codes_of(self, arch: Mapping[str, Value]) -> list[int]:
        values = arch._values if isinstance(arch, Arch) else arch
        codes: list[int] = []
        active = 0
        for name, _, code_of, when in self._columns:
            code = INACTIVE
            if not when or _are_among(codes, when):
                code = code_of.get(values.get(name), INACTIVE)
                if code == INACTIVE:
                    self.validate(arch)  # names what is missing or wrong
                active += 1
            codes.append(code)
        if active != len(values):
            self.validate(arch)  # names an unknown choice
        return codes

    def _from_codes(self, codes: np.ndarray) -> Arch:
        values: dict[str, Value] = {}
        known = codes.tolist()
        for index, (name, choice_values, _, when) in enumerate(self._columns):
            if when and not _are_among(known, when):
                known[index] = INACTIVE
                continue
            if not 0 <= known[index] < len(choice_values):
                raise ValueError(f"code {known[index]} of choice {name!r} is not among 0 to {len(choice_values) - 1}")
            values[name] = choice_values[known[index]]
        return Arch(values)

    def _canonical(self, arch: Mapping[str, Value]) -> Arch:
        values: dict[str, Value] = {}
        for name, choice in self.choices.items():
            if _is_active(choice, values):
                value = arch.get(name)
                values[name] = value if value is None else choice.values[choice.values.index(value)]
        return Arch(values)

    def _check_value(self, name: str, value: Value) -> None:
        if name not in self.choices:
            raise ValueError(f"this space has no choice {name!r}; its choices are {', '.join(self.choices)}")
        if value not in self.choices[name].values:
            raise ValueError(f"choice {name!r} is one of {self.choices[name].values}, not {value!r}")


def _json_object(text: str, what: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # the former for numbers of thousands of digits as well
        raise ValueError(f"{what} is a JSON object, but {text[:80]!r} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{what} is a JSON object, not {text[:80]!r}")
    return values


class _Column(NamedTuple):
    """A choice as `encode` and `decode` need it."""

    name: str
    values: tuple[Value, ...]
    code_of: dict[Value, int]
    when: list[tuple[int, frozenset[int]]]  # the columns that a choice depends on, and their codes that make it active


def _are_among(codes: Sequence[int], when: Sequence[tuple[int, frozenset[int]]]) -> bool:
    for column, allowed in when:  # noqa: SIM110, a loop takes half as long
        if codes[column] not in allowed:
            return False
    return True


def _is_active(choice: Choice, values: Mapping[str, Value]) -> bool:
    return all(values.get(parent) in allowed for parent, allowed in choice.when.items())
