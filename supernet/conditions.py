"""Under which conditions a setting is read at all, said where it is declared.

    method: Literal["sandwich", "best_up"] = "sandwich"
    trials: Annotated[int, only_where(method=("best_up",))] = 3

A command line tells whoever gives a setting that nothing reads (`supernet_cli.flags`); the settings themselves are
taken as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Other:
    """Any value but these."""

    values: tuple[Any, ...]


Values = tuple[Any, ...] | Other | Literal["given", "absent"]

GIVEN: Literal["given"] = "given"
"""Anything but None, False, 0 and what is empty."""
ABSENT: Literal["absent"] = "absent"
"""None, False, 0 or empty."""


@dataclass(frozen=True)
class Only:
    """A setting, or a group of these, is read where others beside it have certain values, by their names: `GIVEN`,
    `ABSENT`, those that are listed, of which a tuple has one, or any `other_than` some."""

    where: tuple[tuple[str, Values], ...]

    def unmet(self, settings: Any) -> tuple[str, Values] | None:
        """The first of the other `settings` that has another value than it should, with these; None where all have."""
        return next(((name, values) for name, values in self.where if not _is(getattr(settings, name), values)), None)


@dataclass(frozen=True)
class Unread:
    """Settings of a group, by their names, that are not read here."""

    names: tuple[str, ...]


def only_where(**others: Values) -> Only:
    """The mark of a setting that is read only where `others` are as they are said, all of them."""
    return Only(tuple(others.items()))


def other_than(*values: Any) -> Other:
    """Any value but these."""
    return Other(values)


def unread(*names: str) -> Unread:
    """The mark of a group of settings of which these are not read."""
    return Unread(names)


def _is(value: Any, values: Values) -> bool:
    if values in (GIVEN, ABSENT):
        return bool(value) == (values == GIVEN)
    if isinstance(values, Other):
        return value not in values.values
    return any(own in values for own in (value if isinstance(value, tuple) else (value,)))
