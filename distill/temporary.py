"""Contexts that change how a module runs and leave no trace on it, whatever happens inside."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle


@contextlib.contextmanager
def modes(model: nn.Module, is_training: Callable[[nn.Module], bool]) -> Iterator[None]:
    """While the context lasts, every module of `model` is in train or in eval mode as `is_training` says."""
    before = {module: module.training for module in model.modules()}
    try:
        for module in before:
            module.training = is_training(module)
        yield
    finally:
        for module, training in before.items():
            module.training = training


def batch_statistics(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """While the context lasts, BatchNorm uses the statistics of the batch and everything else is in eval mode."""
    return modes(model, lambda module: isinstance(module, _BatchNorm))


@contextlib.contextmanager
def hooks(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """The hooks that are registered as `handles` are taken are removed at the end of the context."""
    taken: list[RemovableHandle] = []
    try:
        taken.extend(handles)
        yield
    finally:
        for handle in taken:
            handle.remove()
