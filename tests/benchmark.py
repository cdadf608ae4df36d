"""Benchmarks as modules, for tests of what they count and try."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@contextmanager
def benchmark(name: str) -> Iterator[ModuleType]:
    """The module benchmarks/`name`.py, and what it imports from beside it, as long as the context lasts."""
    path, modules = list(sys.path), set(sys.modules)
    sys.path.append(str(BENCHMARKS))  # last: its search.py is not the package of that name
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path[:] = path
        for other in {file.stem for file in BENCHMARKS.glob("*.py")} & (set(sys.modules) - modules):
            if Path(sys.modules[other].__file__).parent == BENCHMARKS:  # not the package of that name
                del sys.modules[other]
