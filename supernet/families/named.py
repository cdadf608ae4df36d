"""Search spaces by name: those of this package, those that are installed, and code of one's own.

NAME                     one of `supernet.families.FAMILIES`, or an entry point of the group `supernet.families`
package.module:function  a function in a module that Python finds
path/to/file.py:function a function in a file

A family's function takes `num_classes` and options, and returns a `Family`. Runs and subnets name their space, but no
code is imported because a file says so: one of the last two kinds is said again by whoever reads it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import logging
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from supernet.families import FAMILIES
from supernet.families.family import Family

logger = logging.getLogger(__name__)

GROUP = "supernet.families"  # of entry points

# the modules that were loaded from files, by the names that they have in sys.modules
_files: dict[str, ModuleType] = {}


def make_family(space: str, options: str, num_classes: int) -> Family:
    """The family `space` with `options`, a JSON object; ValueError if either is unknown."""
    function = find_family(space)
    try:
        given = json.loads(options)
        if function not in FAMILIES.values():  # a TypeError from within such a function is its author's to see
            inspect.signature(function).bind(num_classes=num_classes, **given)
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"the options {options} do not fit the space {space!r}: {error}") from error
    try:
        family = function(num_classes=num_classes, **given)
    except TypeError as error:
        if function not in FAMILIES.values():
            raise
        raise ValueError(f"the options {options} do not fit the space {space!r}: {error}") from error
    if not isinstance(family, Family):
        raise ValueError(
            f"{space} returns a {type(family).__name__}, where it should return a supernet.families.Family"
        )
    return family


def find_family(space: str) -> Callable[..., Family]:
    """The function that is called `space`, which is imported for it; ValueError if there is none."""
    if space in FAMILIES:
        return FAMILIES[space]
    if (entry := installed().get(space)) is not None:
        return entry.load()
    if not is_own(space):
        raise ValueError(
            f"there is no search space {space!r}; the spaces are {', '.join([*FAMILIES, *installed()])}, and those of "
            "your own, as package.module:function or path/to/file.py:function"
        )
    place, name = space.rsplit(":", 1)
    module = _load_file(space, Path(place)) if place.endswith(".py") else _import(space, place)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"there is no search space {space!r}: {place} has no function {name!r}")
    return function


def installed() -> dict[str, EntryPoint]:
    """The spaces that other packages bring, by name."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def is_own(space: str) -> bool:
    """Whether `space` names code by where it lies."""
    return ":" in space and space not in installed()


def absolute(space: str) -> str:
    """`space` as it is called from every folder."""
    place, colon, name = space.rpartition(":")
    return f"{Path(place).absolute()}{colon}{name}" if place.endswith(".py") else space


def same_space(space: str, other: str) -> bool:
    """Whether two names are of one space: the same, or of a function of the same name that lies elsewhere now."""
    return space == other or (is_own(space) and is_own(other) and space.rsplit(":")[-1] == other.rsplit(":")[-1])


def said_again(space: str, said: str | None, place: Path | str) -> str:
    """By what name the space of the run or subnet at `place`, whose file says `space`, is to be imported.

    That is `said` if it is code of one's own; ValueError if `said`, the name that whoever reads it gives, is not the
    same space.
    """
    if not is_own(space):
        return space
    if said is not None and same_space(space, said):
        return said
    another = "" if said is None or not is_own(said) else f", where {said} is another"
    raise ValueError(
        f"{place} is of the space {space}{another}: code of your own, which is not imported because a file says so. "
        f"Say it again with --space {space} (space= in Python), or install it as an entry point of the group {GROUP}"
    )


def source_digest(space: str) -> str | None:
    """The SHA-256 of the file with the function `space`; None for those of this package, which has a version."""
    if space in FAMILIES:
        return None
    source = inspect.getsourcefile(inspect.unwrap(find_family(space)))
    return source and hashlib.sha256(Path(source).read_bytes()).hexdigest()


def warn_if_changed(space: str, digest: str | None, place: Path | str) -> None:
    """Say so in the log if the file with the function `space` is another than when `digest` was noted at `place`."""
    if digest is not None and source_digest(space) != digest:
        logger.warning("the code of the space %s has changed since %s was written", space, place)


def modules_from_files() -> list[ModuleType]:
    """Those that spaces were loaded from, which another process finds by no name."""
    return list(_files.values())


def _load_file(space: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"there is no search space {space!r}: no file {path}")
    path = path.resolve()
    name = f"{path.stem}_{hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:12]}"
    if name not in _files:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # where dataclasses and torch.compile look for what a function refers to
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        _files[name] = module
    return _files[name]


def _import(space: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # something that the module itself imports
        raise ValueError(
            f"there is no search space {space!r}: Python finds no module {error.name!r}; install it, or name its file"
        ) from None
