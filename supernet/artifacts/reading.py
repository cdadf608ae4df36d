"""What others may have edited, cut off or damaged, read into values of the types that are said, or refused in a line.

`json` takes any text for any value, and Python's annotations are not checked when a program runs: without this, a file
with a list in the place of a number ends far from where it was read, in an error that names neither.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import gzip
import itertools
import json
import sys
import types
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NotRequired, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

Kind = TypeVar("Kind")


class OtherType(ValueError):
    """A value is of another type than it should be, rather than of that type and wrong within."""


LARGEST = 2**128  # of an integer: its square is still a float

NAMES = {
    dict: "an object",
    list: "a list",
    tuple: "a list",
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
}


def read_json(path: Path, kind: type[Kind], what: str) -> Kind:
    """The JSON in the file at `path`, as `typed` gives it for `kind`; `what` says what it should be, such as "device".

    ValueError, in one line that names the file, if it is not there, cannot be read, is no JSON or is of other types.
    """
    try:
        return parse_json(path.read_bytes(), kind)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{path} is no {what}: {reason}") from error


def parse_json(text: str | bytes, kind: type[Kind]) -> Kind:
    """The value that `text` is as JSON in UTF-8, as `typed` gives it for `kind`; ValueError if it is none."""
    try:
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no text in UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON ({error})") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return typed(kind, value)


def parse_lines(lines: Sequence[bytes], kind: type[Kind], path: Path | str) -> list[Kind]:
    """The value of each of the `lines` of the file `path`, as `parse_json` gives it; ValueError that names file and
    line."""
    values = []
    for number, line in enumerate(lines, start=1):
        try:
            values.append(parse_json(line, kind))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is damaged ({error}): {line[:80]!r}") from None
    return values


def read_rows(path: Path, columns: Sequence[str] = (), whole_lines: bool = False) -> list[dict[str, str]]:
    """The rows of `numbered_rows`, without their lines."""
    return [row for _, row in numbered_rows(path, columns, whole_lines=whole_lines)]


def numbered_rows(
    path: Path,
    columns: Sequence[str] = (),
    *,
    delimiter: str = ",",
    whole_lines: bool = False,
    complete: bool = False,
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of the CSV file at `path`, compressed if it ends in .gz, below the first, which names the columns, each
    with the line that it ends in, counted from 1; cells that a row lacks are empty.

    With `whole_lines` a last line that was not finished is passed over. ValueError, naming the file and the line, if it
    cannot be read, lacks one of the `columns` or has one twice, or has a row with more cells than columns, or with
    fewer where rows are `complete`.
    """
    with _table(path, delimiter, whole_lines) as (names, rows):
        if missing := [name for name in columns if name not in names]:
            needed, named = " and ".join(columns), ", ".join(names)
            raise ValueError(f"{path} has no column {missing[0]!r}, it needs {needed} and has {named!r}")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{path} has the column {twice!r} twice")
        for cells in rows:
            if len(cells) > len(names) or (complete and 0 < len(cells) < len(names)):
                than = "more" if len(cells) > len(names) else "fewer"
                raise ValueError(f"{path}, line {rows.line_num}, has {than} cells than there are columns")
            if cells:
                yield rows.line_num, dict(itertools.zip_longest(names, cells, fillvalue=""))


def read_columns(path: Path, whole_lines: bool = False) -> list[str]:
    """The names of the columns of a CSV file, none of an empty one; `whole_lines` and ValueError as of
    `numbered_rows`."""
    with _table(path, ",", whole_lines) as (names, _):
        return names


@contextlib.contextmanager
def _table(path: Path, delimiter: str, whole_lines: bool) -> Iterator[tuple[list[str], Any]]:
    """The first row and a reader of the others; what reading raises is a ValueError."""
    csv.field_size_limit(sys.maxsize)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            lines = (line for line in file if not whole_lines or line.endswith(("\n", "\r")))
            rows = csv.reader(lines, delimiter=delimiter, strict=True)  # or a quote swallows all up to the next
            yield next(rows, []), rows
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8 (line {rows.line_num + 1} or beyond)") from None
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num}: {error}") from None


def typed(kind: type[Kind], value: Any, name: str = "it") -> Kind:
    """`value`, as JSON gives it, as the annotation `kind` says: lists are tuples where these are said, and objects the
    dataclasses or named tuples; what is of a type already is taken as it is.

    A TypedDict may have more entries than it names. Numbers are what they are: an integer is a float as well, a truth
    value is neither. ValueError, naming what is wrong by its `name`, for a value of another type, and for an object
    that has other names than the fields.
    """
    own = kind if isinstance(kind, type) and not is_typeddict(kind) else None
    if kind is Any or kind is object or (own and own not in (int, float, dict) and isinstance(value, own)):
        return value
    if own and (dataclasses.is_dataclass(own) or hasattr(own, "_fields")):
        return _filled(own, value, name)
    if is_typeddict(kind):
        return _entries(kind, value, name)
    origin, arguments = get_origin(kind) or own, get_args(kind)
    if origin in (Union, types.UnionType):
        return _first_of(arguments, value, name)
    if origin is Literal:
        if not any(type(value) is type(option) and value == option for option in arguments):
            raise ValueError(f"{name} is one of {', '.join(map(repr, arguments))}, not {_shown(value)}")
    elif origin is tuple:
        return _tuple(arguments, value, name)
    elif origin is not None and issubclass(origin, Mapping):
        _check(dict, value, name)
        return {key: typed(arguments[1], own, _within(name, key)) for key, own in value.items()} if arguments else value
    elif origin is not None and issubclass(origin, Sequence) and origin is not str:
        _check(list, value, name)
        return [typed(arguments[0], own, f"{name}[{i}]") for i, own in enumerate(value)] if arguments else value
    else:
        _check(origin, value, name)
    return value


def typed_arguments(function: Callable, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments `given` by name, each as `typed` gives it for what the `function` says of it; those of which it
    says nothing, or that it has not, are left as they are."""
    known = _hints(function)
    return {name: typed(known[name], value, name) if name in known else value for name, value in given.items()}


def _filled(kind: type[Kind], value: Any, name: str) -> Kind:
    _check(dict, value, name)
    hints = _hints(kind)
    fields = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else kind._fields
    if unknown := [key for key in value if key not in fields]:
        raise ValueError(f"{name} has {unknown[0]!r}, which no {kind.__name__} of this version has")
    values = {key: typed(hints[key], own, _within(name, key)) for key, own in value.items()}
    try:
        return kind(**values)
    except TypeError as error:  # what is missing
        raise ValueError(f"{name} is no {kind.__name__}: {error}") from None


def _entries(kind: Any, value: Any, name: str) -> Any:
    _check(dict, value, name)
    hints = _hints(kind)  # `__required_keys__` takes all for required where annotations are strings
    if missing := [key for key, hint in hints.items() if key not in value and get_origin(hint) is not NotRequired]:
        raise ValueError(f"{name} has no {missing[0]!r}")
    found = {key: hint for key, hint in hints.items() if key in value}
    return value | {
        key: typed(get_args(hint)[0] if get_origin(hint) is NotRequired else hint, value[key], _within(name, key))
        for key, hint in found.items()
    }


def _first_of(kinds: Sequence[Any], value: Any, name: str) -> Any:
    within: list[ValueError] = []
    for kind in kinds:
        try:
            return typed(kind, value, name)
        except OtherType:
            continue
        except ValueError as error:
            within.append(error)
    if within:
        raise within[0]
    names = " or ".join(NAMES.get(get_origin(kind) or kind, _called(kind)) for kind in kinds)
    raise OtherType(f"{name} is {names}, not {_shown(value)}")


def _tuple(kinds: Sequence[Any], value: Any, name: str) -> tuple:
    if not isinstance(value, tuple):
        _check(list, value, name)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if kinds and len(kinds) != len(value):
        raise ValueError(f"{name} is a list of {len(kinds)}, not {_shown(value)}")
    return tuple(typed(kind, own, f"{name}[{i}]") for i, (kind, own) in enumerate(zip(kinds or value, value)))


def _check(kind: Any, value: Any, name: str) -> None:
    is_bool = isinstance(value, bool)
    accepted = (int, float) if kind is float else kind
    if kind is None or not isinstance(value, accepted) or (is_bool and kind in (int, float)):
        raise OtherType(f"{name} is {NAMES.get(kind, _called(kind))}, not {_shown(value)}")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"{name} is {_shown(value)}, a number beyond all that occur")


def _called(kind: Any) -> str:
    return "null" if kind is type(None) else getattr(kind, "__name__", str(kind))


def _within(name: str, key: str) -> str:
    return key if name == "it" else f"{name}.{key}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@lru_cache
def _hints(kind: Any) -> dict[str, Any]:
    try:
        return get_type_hints(kind, include_extras=is_typeddict(kind))
    except (NameError, TypeError):  # of code of one's own, whose annotations are for a type checker alone, or a partial
        return {}
