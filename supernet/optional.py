"""Packages that only some users need: imported when used, named when missing."""

from __future__ import annotations

import importlib
from types import ModuleType

EXTRAS = {
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "plotly": "report",
    "tensorboard": "tensorboard",
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
