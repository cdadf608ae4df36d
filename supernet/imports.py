"""Modules that are imported late: those behind a package's names, and those of extras that only some users need."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

EXTRAS = {
    "datasets": "datasets",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "executorch": "executorch",
    "litert_torch": "litert",
    "ai_edge_litert": "litert",
    "tensorrt": "tensorrt",
    "plotly": "report",
    "pynvml": "energy",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "fastapi": "service",
    "uvicorn": "service",
    "tokenizers": "text",
}


def require(module: str) -> ModuleType:
    """The module of that name; ModuleNotFoundError with the command that installs it if it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        extra = EXTRAS[package]
        raise ModuleNotFoundError(
            f"{package} is not installed: pip install 'supernet[{extra}]'", name=package
        ) from None


def lazily(package: str, names: Mapping[str, Sequence[str]]) -> Callable[[str], object]:
    """The `__getattr__` (PEP 562) of a package that offers `names`: for each module, by name, what is taken from it."""
    homes = {name: home for home, found in names.items() for name in found}

    def find(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return find
