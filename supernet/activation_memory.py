"""Memory that activations take: of a module on one example, and how many examples there is room for."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

from supernet.operations import operations
from supernet.plain import floating_dtype, inputs_like
from supernet.skeleton import without_data
from supernet.supernet import Supernet

logger = logging.getLogger(__name__)

_KNOWN: WeakKeyDictionary[Supernet, dict[Hashable, int | None]] = WeakKeyDictionary()
"""Bytes that an example takes in the largest subnet, by the form of the inputs."""


def peak_activation_bytes(
    model: nn.Module, image_size: int | Sequence[int] | tuple, bits: int = 32, fused: bool = False
) -> int:
    """The largest number of bytes of activations that are alive at the same time as `model` runs on one example.

    That is an image of the size [C, H, W], one of so many pixels a side in three channels, or inputs like those in a
    tuple of tensors (`supernet.plain.inputs_like`). Weights and buffers do not count, nor does scratch space within an
    operation. Floating-point activations have `bits` each, and others the size of their type.

    By default it is that of PyTorch's eager mode: the input is alive throughout, an activation in place needs no
    memory, and what is used no more is freed. With `fused` it is that of a deployed network, as
    `supernet.operations.fuse` has it: BatchNorm, activations and sums of residuals write over what they read, and the
    input's memory is free once nothing needs it. So MobileNetV2 of width 0.35 at 144 pixels takes 311,040 bytes at 8
    bits, where MCUNet's authors publish 308 kB (Lin et al., NeurIPS 2020, arXiv 2007.10319, their model zoo). Branches
    that merge for deployment count as they are built: give `supernet.artifacts.deployment.deployed(model)`.
    """
    if isinstance(image_size, int):
        image_size = (3, image_size, image_size)
    if fused:
        found = operations(model, image_size, fused=True)
        return math.ceil(
            max((sum(found.buffer_bytes(buffer, bits) for buffer in alive) for alive in found.alive()), default=0)
        )
    if isinstance(image_size[0], int):
        image_size = (torch.empty(1, *image_size, device="meta"),)
    return without_data(model, lambda module, device: _peak(inputs_like(image_size, module, device), module, bits))


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


def _peak(inputs: tuple, model: nn.Module, bits: int | None = None) -> int:
    """With floating-point activations of `bits` each, or of the size of their type."""
    with torch.no_grad(), _Alive([*model.parameters(), *model.buffers()], bits) as alive:
        for tensor in tree_leaves(inputs):
            if isinstance(tensor, Tensor):
                alive.note(tensor)
        model(*inputs)
    return math.ceil(alive.peak)


class _Alive(TorchDispatchMode):
    """Follows the storages that operations make."""

    def __init__(self, weights: Sequence[Tensor], bits: int | None) -> None:
        super().__init__()
        self.peak, self._bits = 0.0, bits
        self._weights = {StorageWeakRef(tensor.untyped_storage()) for tensor in weights}
        self._sizes: dict[StorageWeakRef, float] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.note(value)
        return result

    def note(self, tensor: Tensor) -> None:
        storage = StorageWeakRef(tensor.untyped_storage())
        if storage not in self._weights:
            size: float = tensor.untyped_storage().nbytes()
            if self._bits and tensor.is_floating_point():
                size = size // tensor.element_size() * self._bits / 8
            self._sizes[storage] = size
        self._sizes = {storage: size for storage, size in self._sizes.items() if not storage.expired()}
        self.peak = max(self.peak, sum(self._sizes.values()))
