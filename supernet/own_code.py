"""Functions by name: those that come with the package, those that are installed, and code of one's own.

NAME                     one that comes with the package, or an entry point of the kind's group
package.module:function  a function in a module that Python finds
path/to/file.py:function a function in a file

Files of runs and subnets name such functions, but no code is imported because a file says so: one of the last two sorts
is said again by whoever reads the file.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

logger = logging.getLogger(__name__)

# the modules that were loaded from files, by the names that they have in sys.modules
_files: dict[str, ModuleType] = {}


@dataclass(frozen=True)
class Kind:
    """What functions of one kind have in common: all return a search space's family, say."""

    noun: str  # such as "search space"
    flag: str  # the noun in short, by which functions are said again: --FLAG on command lines, FLAG= in Python
    group: str  # of entry points
    returns: type  # what the functions return
    known: Mapping[str, Callable[..., Any]] = field(default_factory=dict)  # those of this package

    def installed(self) -> dict[str, EntryPoint]:
        """The functions that other packages bring, by name."""
        return {entry.name: entry for entry in entry_points(group=self.group)}

    def is_own(self, name: str) -> bool:
        """Whether `name` names code by where it lies."""
        place, colon, _ = name.rpartition(":")
        return bool(colon) and (place.endswith(".py") or "/" not in place) and name not in self.installed()

    def find(self, name: str) -> Callable[..., Any] | None:
        """The function that is called `name`, which is imported for it; None for a name of none of the three sorts.
        ValueError if there is no such file, module or function."""
        if name in self.known:
            return self.known[name]
        if name not in self.installed() and not self.is_own(name):
            return None
        place, attribute = self._place(name)
        module = self._module(name, place)
        try:
            function = attrgetter(attribute)(module)  # an entry point may name a class's method
        except AttributeError:
            function = None
        if not callable(function):
            raise ValueError(f"there is no {self.noun} {name!r}: {place} has no function {attribute!r}")
        return function

    def same(self, name: str, other: str) -> bool:
        """Whether two names are of one function: the same, or of a function of one name that lies elsewhere now."""
        return name == other or (
            self.is_own(name) and self.is_own(other) and name.rsplit(":")[-1] == other.rsplit(":")[-1]
        )

    def said_again(self, name: str, said: str | None, place: Path | str) -> str:
        """By what name the function `name`, which the file of the run or subnet at `place` says, is to be imported.

        That is `said` if it is code of one's own; ValueError if `said`, the name that whoever reads the file gives, is
        not of the same function.
        """
        if not self.is_own(name):
            return name
        if said is not None and self.same(name, said):
            return said
        argument = self.flag.replace("-", "_")
        another = "" if said is None or not self.is_own(said) else f", where {said} is another"
        raise ValueError(
            f"{place} is of the {self.flag} {name}{another}: code of your own, which is not imported because a file "
            f"says so. Say it again with --{self.flag} {name} ({argument}= in Python), or install it as an entry point "
            f"of the group {self.group}"
        )

    def beside(self, name: str, other: str, said: str | None) -> str | None:
        """By what name `name` is found where `other`, a function in the same file or module, is said again as `said`.

        None if `name` is of another file or module, or if that defines no such function that is annotated to return
        what those of this kind do: others in the file, and what it imports, were not meant to be called.
        """
        place, _, attribute = name.rpartition(":")
        if said is None or not self.is_own(name) or place != other.rpartition(":")[0]:
            return None
        found = f"{said.rpartition(':')[0]}:{attribute}"
        module = self._module(found, found.rpartition(":")[0])
        function = getattr(module, attribute, None)
        is_defined = inspect.isfunction(function) and function.__module__ == module.__name__
        return found if is_defined and self.returns in getattr(_returned(function), "__mro__", ()) else None

    def source_digest(self, name: str) -> str | None:
        """The SHA-256 of the file with the function `name`, or, where what is called is an object such as a
        `functools.partial`, of the file that the name leads to; None for functions of this package, which has a
        version."""
        function = None if name in self.known else self.find(name)
        if function is None:
            return None
        function = inspect.unwrap(function)
        is_object = not (inspect.isroutine(function) or inspect.isclass(function))
        source = inspect.getsourcefile(self._module(name, self._place(name)[0]) if is_object else function)
        return hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else None

    def warn_if_changed(self, name: str, digest: str | None, place: Path | str) -> None:
        """Say so in the log if the file with the function `name` is another than when `digest` was noted at `place`."""
        if digest is not None and self.source_digest(name) != digest:
            logger.warning("the code of the %s %s has changed since %s was written", self.flag, name, place)

    def _place(self, name: str) -> tuple[str, str]:
        """The file or module of the installed or own function `name`, and what the function is called there."""
        entry = self.installed().get(name)
        place, _, attribute = name.rpartition(":")
        return (place, attribute) if entry is None else (entry.module, entry.attr)

    def _module(self, name: str, place: str) -> ModuleType:
        if place.endswith(".py"):
            if not Path(place).is_file():
                raise ValueError(f"there is no {self.noun} {name!r}: no file {place}")
            return _load_file(Path(place).resolve())
        if not place or place.startswith("."):
            raise ValueError(f"there is no {self.noun} {name!r}: {place!r} is no module's whole name, package.module")
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{place}.".startswith(f"{error.name}."):
                raise  # something that the module itself imports
            raise ValueError(
                f"there is no {self.noun} {name!r}: Python finds no module {error.name!r}; install it, or name its file"
            ) from None


def _returned(function: Callable[..., Any]) -> object:
    """What `function` is annotated to return; None if nothing, or by names that are not there."""
    try:
        return get_type_hints(function).get("return")
    except (NameError, AttributeError, TypeError):
        return None


def absolute(name: str) -> str:
    """`name` as the function is called from every folder."""
    place, colon, function = name.rpartition(":")
    return f"{Path(place).absolute()}{colon}{function}" if place.endswith(".py") else name


def modules_from_files() -> list[ModuleType]:
    """The modules of files that functions were loaded from, which another process finds by no name."""
    return list(_files.values())


def _load_file(path: Path) -> ModuleType:
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
