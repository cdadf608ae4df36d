"""A command's flags, on the command line and in a file: `--config FILE.yaml`, read and written.

A flag that is given and that nothing reads, by what its settings say of themselves (`supernet.conditions`), is named in
a warning.

A file of flags maps their names, as `--help` shows them, to values: batch-size or batch_size to 256, a switch to true
or false, several values to a list, JSON to itself, and flags that have a part in common, such as data.root, to a
mapping beneath that part, or each by itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import logging
import os
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import tyro
import yaml

from supernet.artifacts.atomic import write_atomically
from supernet.conditions import ABSENT, GIVEN, Only, Other, Unread
from supernet.training import distributed
from supernet.training.loop import StepResult

ABOUT = """

--config FILE.yaml takes flags from a file, where they are named as here; those on the command line win."""
NOT_KEPT = ("resume",)  # flags that say whether something begins, and nothing of what it is

Parsed = TypeVar("Parsed")

logger = logging.getLogger(__name__)


class Condition(NamedTuple):
    """The mark of a flag, or of a group that it is in, and where the settings are of which it tells."""

    mark: Only | Unread
    name: str  # of what is marked, or within a marked group of what is in it
    settings: tuple[str, ...]  # fields that lead to the settings beside it
    prefix: str  # of the flags of these

    def reason(self, arguments: Any) -> str | None:
        """Why nothing reads the flag; None where something may."""
        if isinstance(self.mark, Unread):
            return "in this command" if self.name in self.mark.names else None
        settings = _at(arguments, self.settings)
        unmet = self.mark.unmet(settings)
        if unmet is None:
            return None
        name, values = unmet
        flag = f"--{self.prefix}{name.replace('_', '-')}"
        if values in (GIVEN, ABSENT):
            return f"{'without' if values == GIVEN else 'beside'} {flag}"
        only = "" if isinstance(values, Other) else f", only with {' or '.join(map(str, values))}"
        return f"with {flag} {_shown(getattr(settings, name))}{only}"


class Flag(NamedTuple):
    """A flag, and whence its value comes in the parsed arguments."""

    names: tuple[str, ...]  # as `--help` shows them, without the dashes before them; the first one is written
    fields: tuple[str, ...]
    is_switch: bool
    conditions: tuple[Condition, ...] = ()

    @property
    def spellings(self) -> list[str]:
        """How it is typed, on or off."""
        return [f"--{spelling}" for name in self.names for spelling in (name, off(name))]

    def unread(self, arguments: Any) -> str | None:
        """Why nothing reads it beside the other `arguments`; None where something may."""
        return next(filter(None, (condition.reason(arguments) for condition in self.conditions)), None)


def parse_flags(
    kind: type[Parsed], description: str | None, *, default: Parsed | None = None, omit_prefixes: bool = False
) -> Parsed:
    """The command line of this process, with its file of flags, as `kind`; what neither says is as in `default`.

    Warns of flags that are given and that nothing reads."""
    config = (tyro.conf.OmitArgPrefixes,) if omit_prefixes else ()
    given = {} if default is None else {"default": default}
    words = typed_words(kind, omit_prefixes=omit_prefixes)
    about = f"{(description or '').rstrip()}{ABOUT}"
    arguments = tyro.cli(kind, args=words, description=about, config=config, **given)
    if os.environ.get("RANK", "0") == "0":  # of several that torchrun starts, the first
        for line in without_effect(arguments, words, omit_prefixes=omit_prefixes):
            logger.warning("%s", line)
    return arguments


def without_effect(arguments: Any, words: Sequence[str], *, omit_prefixes: bool = False) -> Iterator[str]:
    """A line for each flag among the `words` of a command line that nothing reads, as these are parsed."""
    said = _said(words)
    for flag in flags(type(arguments), omit_prefixes=omit_prefixes):
        spelt = next((name for name in flag.spellings if name in said), None)
        if spelt is not None and (reason := flag.unread(arguments)) is not None:
            yield f"{spelt} has no effect {reason}"


def known_beforehand(parser: argparse.ArgumentParser, kind: type) -> argparse.Namespace:
    """What `parser`, which knows the few flags that set the defaults of the others of `kind`, finds on the command line
    and in its file of flags; these flags have no prefixes."""
    said = [word for word in typed_words(kind, omit_prefixes=True) if not word.endswith("=None")]
    return parser.parse_known_args(said)[0]


def typed_words(kind: type, *, omit_prefixes: bool = False) -> list[str]:
    """The words of this process's command line, where those of its file of flags, if it names one, come last.

    ValueError, in one line, for a file that cannot be read, and for a key in it that is no flag of `kind`.
    """
    typed, path = _without_config(sys.argv[1:])
    if path is None:
        return typed
    said = _said(typed)
    known = {name: flag for flag in flags(kind, omit_prefixes=omit_prefixes) for name in flag.names}
    added = []
    for name, value in _read(path, known):
        if said.isdisjoint(known[name].spellings):
            added += _as_words(known[name], name, value, path)
    return [*typed, *added]


def write_flags(path: Path, arguments: Any, *, omit_prefixes: bool = False) -> None:
    """Write a file of flags by which a command would get these `arguments` again, but for whether it resumes, and for
    those that nothing reads."""
    values = {}
    for flag in flags(type(arguments), omit_prefixes=omit_prefixes):
        if flag.names[0] not in NOT_KEPT and flag.unread(arguments) is None:
            values[flag.names[0]] = _plain(_at(arguments, flag.fields))
    with write_atomically(path) as temporary:
        temporary.write_text(yaml.safe_dump(values, sort_keys=False, width=120), encoding="utf-8")


def noting_flags(
    path: Path, arguments: Any, on_step: Callable[[StepResult], None], *, omit_prefixes: bool = False
) -> Callable[[StepResult], None]:
    """`on_step`, which writes the file of flags once a training has done its first step, as its other files are."""
    is_due = not arguments.resume and distributed.rank() == 0

    def note(result: StepResult) -> None:
        nonlocal is_due
        if is_due:
            write_flags(path, arguments, omit_prefixes=omit_prefixes)
            is_due = False
        on_step(result)

    return note


def flags(
    kind: type,
    *,
    omit_prefixes: bool = False,
    prefix: str = "",
    fields: tuple[str, ...] = (),
    conditions: tuple[Condition, ...] = (),
) -> Iterator[Flag]:
    """The flags that tyro makes of the dataclass `kind`, without positional and suppressed ones."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, marks = hints[field.name], ()
        if typing.get_origin(hint) is Annotated:
            hint, *marks = typing.get_args(hint)
        if tyro.conf.Suppress in marks or tyro.conf.Positional in marks:
            continue
        own = [mark for mark in marks if hasattr(mark, "aliases")]  # of tyro.conf.arg
        name = next((mark.name for mark in own if mark.name is not None), field.name).replace("_", "-")
        place = (*fields, field.name)
        met = tuple(condition._replace(name=field.name) for condition in conditions)
        met += tuple(Condition(mark, name, fields, prefix) for mark in marks if isinstance(mark, (Only, Unread)))
        if dataclasses.is_dataclass(hint):
            beneath = "" if omit_prefixes or not name else f"{prefix}{name}."
            yield from flags(hint, omit_prefixes=omit_prefixes, prefix=beneath, fields=place, conditions=met)
        else:
            aliases = (alias.lstrip("-") for mark in own for alias in mark.aliases or ())
            yield Flag((prefix + name, *aliases), place, hint is bool, met)


def off(switch: str) -> str:
    """The name of the flag that turns a switch off, such as data.no-balanced."""
    beneath, dot, name = switch.rpartition(".")
    return f"{beneath}{dot}no-{name}"


def _said(words: Sequence[str]) -> set[str]:
    """The flags among `words`, with their dashes."""
    return {word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")}


def _at(arguments: Any, fields: Sequence[str]) -> Any:
    """What `fields` lead to."""
    for name in fields:
        arguments = getattr(arguments, name)
    return arguments


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _without_config(typed: Sequence[str]) -> tuple[list[str], Path | None]:
    """The words but for `--config FILE`, and that file."""
    left, path, remaining = [], None, iter(typed)
    for word in remaining:
        name, is_joined, value = word.partition("=")
        if name != "--config":
            left.append(word)
            continue
        if path is not None:
            raise ValueError("--config names one file, and is given twice")
        value = value if is_joined else next(remaining, "")
        if not value or value.startswith("--"):
            raise ValueError("--config is followed by the file of flags, such as flags.yaml")
        path = Path(value)
    return left, path


def _read(path: Path, known: Mapping[str, Flag]) -> list[tuple[str, yaml.Node]]:
    """Names of flags and their values, as YAML has them."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the file of flags {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"the file of flags {path} is no YAML: {' '.join(str(error).split())}") from error
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"the file of flags {path} is a mapping of flags to values, such as epochs: 30")
    found: dict[str, yaml.Node] = {}
    for name, value in _entries(root, "", known, path):
        if name in found:
            raise ValueError(f"{path}, line {value.start_mark.line + 1}: {name} is there twice")
        found[name] = value
    return list(found.items())


def _entries(
    mapping: yaml.MappingNode, prefix: str, known: Mapping[str, Flag], path: Path
) -> Iterator[tuple[str, yaml.Node]]:
    for key, value in mapping.value:
        name = prefix + str(key.value).replace("_", "-")
        if name in known:
            yield name, value
        elif isinstance(value, yaml.MappingNode) and any(other.startswith(f"{name}.") for other in known):
            yield from _entries(value, f"{name}.", known, path)
        else:
            near = difflib.get_close_matches(name, known, 1, cutoff=0)[0]
            raise ValueError(
                f"{path}, line {key.start_mark.line + 1}: there is no flag {name!r}; the nearest is {near}"
            )


def _as_words(flag: Flag, name: str, value: yaml.Node, path: Path) -> list[str]:
    """A flag with its value, as a command line has it."""
    try:
        text = _text(value)
    except yaml.YAMLError as error:
        raise ValueError(
            f"{path}, line {value.start_mark.line + 1}: {name} is no plain value: {error.problem}"
        ) from error
    if flag.is_switch:
        if text not in ("True", "False"):
            raise ValueError(f"{path}, line {value.start_mark.line + 1}: {name} is true or false, not {text!r}")
        return [f"--{name if text == 'True' else off(name)}"]
    if isinstance(value, yaml.SequenceNode):
        return [f"--{name}", *(word for item in value.value for word in _items(item))]
    return [f"--{name}={text}"]


def _items(node: yaml.Node) -> list[str]:
    return [_text(item) for item in node.value] if isinstance(node, yaml.SequenceNode) else [_text(node)]


def _text(node: yaml.Node) -> str:
    """What is typed for a value: a scalar as it stands, so that 1e-3 is what it is on a command line."""
    if not isinstance(node, yaml.ScalarNode):
        return json.dumps(yaml.SafeLoader("").construct_document(node))
    kind = node.tag.rpartition(":")[2]
    if kind == "null":
        return "None"
    if kind == "bool":
        return str(yaml.SafeLoader.bool_values[node.value.lower()])
    return node.value


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
