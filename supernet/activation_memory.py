"""Memory that activations take: of a module on one example, and how many examples there is room for."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

from supernet.plain import floating_dtype, inputs_like
from supernet.skeleton import without_data
from supernet.supernet import Supernet

logger = logging.getLogger(__name__)

_KNOWN: WeakKeyDictionary[Supernet, dict[Hashable, int | None]] = WeakKeyDictionary()
"""Bytes that an example takes in the largest subnet, by the form of the inputs."""


def peak_activation_bytes(model: nn.Module, example: Sequence[int] | tuple) -> int:
    """The largest number of bytes of activations that are alive at the same time as `model` runs on one example.

    That is an image of the size [C, H, W], or inputs like those in `example` (`supernet.plain.inputs_like`). It is
    alive throughout. Weights and buffers do not count, nor does scratch space within an operation. It is that of
    PyTorch's eager mode in single precision: an activation in place needs no memory, and what is used no more is freed.
    `model` is on the meta device and in eval mode.
    """
    if isinstance(example[0], int):
        example = (torch.empty(1, *example, device="meta"),)
    return _peak(inputs_like(example, model, torch.device("meta")), model)


def examples_within(net: Supernet, inputs: Any, limit_bytes: int) -> int | None:
    """How many examples like those in `inputs`, of any number, the largest subnet can run on at once if all its
    activations are to lie within `limit_bytes`; None, which the log tells once, if it does not run on zeros."""
    leaves, spec = tree_flatten(inputs)
    form = (
        floating_dtype(net),
        str(spec),
        *((leaf.shape[1:], leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves),
    )
    known = _KNOWN.setdefault(net, {})
    if form not in known:
        known[form] = _bytes_an_example(net, inputs)
    each = known[form]
    return None if each is None else limit_bytes // each


def _bytes_an_example(net: Supernet, inputs: Any) -> int | None:
    try:
        return without_data(
            net.skeleton(net.space.largest),
            lambda module, device: _peak(inputs_like(inputs, module, device, count=1), module),
        )
    except ValueError as error:
        logger.warning("the memory of activations is not known and not limited: %s", error)
        return None


def _peak(inputs: tuple, model: nn.Module) -> int:
    with torch.no_grad(), _Alive([*model.parameters(), *model.buffers()]) as alive:
        for tensor in tree_leaves(inputs):
            if isinstance(tensor, Tensor):
                alive.note(tensor)
        model(*inputs)
    return alive.peak


class _Alive(TorchDispatchMode):
    """Follows the storages that operations make."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self._weights = {StorageWeakRef(tensor.untyped_storage()) for tensor in weights}
        self._sizes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.note(value)
        return result

    def note(self, tensor: Tensor) -> None:
        storage = StorageWeakRef(tensor.untyped_storage())
        if storage not in self._weights:
            self._sizes[storage] = tensor.untyped_storage().nbytes()
        self._sizes = {storage: size for storage, size in self._sizes.items() if not storage.expired()}
        self.peak = max(self.peak, sum(self._sizes.values()))
