"""Names that a package offers without importing the modules that they are from before somebody asks for them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence


def lazily(package: str, names: Mapping[str, Sequence[str]]) -> Callable[[str], object]:
    """The `__getattr__` (PEP 562) of a package that offers `names`, each the module with what is taken from it."""
    homes = {name: home for home, found in names.items() for name in found}

    def find(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return find
