"""The operations of a plain module, in order: what each computes, reads and writes; and how they fuse when deployed.

Follows a forward pass of a copy without data, as `supernet.costs.count_macs` does. A *buffer* is the memory of an
activation; views of one are no operations, and what follows from weights alone is a constant, as it is once exported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from supernet.costs import flop_counter
from supernet.plain import inputs_like
from supernet.skeleton import without_data

# [C, H, W] channels, height, width

BATCH_NORM = (
    "native_batch_norm",
    "cudnn_batch_norm",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_no_update",
)
ALSO_POINTWISE = (*BATCH_NORM, "hardswish", "hardswish_", "_prelu_kernel")  # beside what torch tags so


@dataclass(frozen=True)
class Operation:
    """One operation, or several that run as one: a convolution with its BatchNorm and activation, say."""

    layer: str  # the name of the innermost module that runs it
    kind: str  # torch's name of the (first) operation
    macs: int
    weights: int  # numbers read from parameters and other constants
    read: int  # numbers read from activations
    written: int  # numbers written to activations
    reads: tuple[int, ...]  # buffers
    writes: tuple[int, ...]
    pointwise: bool = False  # each number that comes out depends on those at its place alone, and on weights

    def bytes_moved(self, bits: int = 32) -> float:
        """Of weights and activations of `bits` each, every one read or written once."""
        return (self.weights + self.read + self.written) * bits / 8

    def intensity(self, bits: int = 32) -> float:
        """Floating-point operations, two for a MAC, for a byte moved; 0 where nothing is moved."""
        return 2 * self.macs / self.bytes_moved(bits) if self.bytes_moved(bits) else 0.0


class Operations(NamedTuple):
    """What `operations` found."""

    operations: tuple[Operation, ...]
    sizes: tuple[int, ...]  # numbers in each buffer
    integers: tuple[int, ...]  # bytes of one of these numbers where a buffer holds no floating point, else 0
    inputs: tuple[int, ...]  # buffers
    outputs: tuple[int, ...]

    def buffer_bytes(self, buffer: int, bits: int = 32) -> float:
        """Floating-point numbers have `bits` each, others the size of their type."""
        return self.sizes[buffer] * (self.integers[buffer] or bits / 8)

    def alive(self) -> list[list[int]]:
        """For each operation the buffers that are alive while it runs: what it or a later one reads or writes, once
        written. An input is alive until its last use, an output to the end."""
        born = dict.fromkeys(self.inputs, 0)
        last = dict.fromkeys(self.inputs, 0)
        for index, operation in enumerate(self.operations):
            for buffer in (*operation.reads, *operation.writes):
                born.setdefault(buffer, index)
                last[buffer] = index
        last.update(dict.fromkeys(self.outputs, len(self.operations)))
        return [[b for b in born if born[b] <= index <= last[b]] for index in range(len(self.operations))]


def operations(model: nn.Module, example: Sequence[int] | tuple, fused: bool = False) -> Operations:
    """The operations of `model` in eval mode on an image of the size `example`, [C, H, W], or on inputs like those of
    the tuple `example`; with `fused` as `fuse` has them. ValueError if `model` does not run on such inputs."""
    found = without_data(model, partial(_record, example))
    return fuse(found) if fused else found


def fuse(found: Operations) -> Operations:
    """The operations as runtimes of deployed networks execute them.

    A pointwise operation (BatchNorm, an activation, the sum of a residual) writes over an operand of the same size that
    nothing needs afterwards. If all else that it reads is there by the time that this operand is made, it is part of
    the operation that makes it, and only what goes into and comes out of both is moved.
    """
    last = {b: index for index, operation in enumerate(found.operations) for b in operation.reads}
    last.update(dict.fromkeys(found.outputs, len(found.operations)))
    home: dict[int, int] = {}  # of a buffer, the one that it lies in
    ends: dict[int, int] = {}  # when that is needed last
    maker: dict[int, int] = dict.fromkeys(found.inputs, -1)  # which of `merged` wrote it last
    merged: list[Operation] = []
    for index, operation in enumerate(found.operations):
        own = tuple(home.get(b, b) for b in operation.reads)
        for buffer in (*operation.reads, *operation.writes):
            at = home.get(buffer, buffer)
            ends[at] = max(ends.get(at, -1), last.get(buffer, index))
        written = operation.writes
        target = next(
            (b for b in sorted(own, key=lambda b: -maker[b]) if _dies(found, operation, b, ends, index)), None
        )
        if target is not None:
            (out,) = operation.writes
            home[out] = target
            ends[target] = max(ends[target], last.get(out, index))
            written = (target,)
        written = tuple(home.get(b, b) for b in written)
        operation = dataclasses.replace(operation, reads=own, writes=written)
        latest = max((maker[b] for b in own), default=-1)
        if operation.pointwise and latest >= 0 and written == merged[latest].writes:
            merged[latest] = _joined(merged[latest], operation, found.sizes[written[0]])
        else:
            latest = len(merged)
            merged.append(operation)
        maker.update(dict.fromkeys(written, latest))
    return found._replace(operations=tuple(merged), outputs=tuple(home.get(b, b) for b in found.outputs))


def _dies(found: Operations, operation: Operation, buffer: int, ends: dict[int, int], index: int) -> bool:
    """Whether the pointwise `operation` may write what it makes over `buffer`."""
    if not operation.pointwise or len(operation.writes) != 1 or buffer in found.inputs:
        return False
    (out,) = operation.writes
    return ends[buffer] <= index and found.sizes[out] == found.sizes[buffer]


def _joined(first: Operation, second: Operation, between: int) -> Operation:
    """Both as one, where `second` reads the so many numbers that `first` writes, and writes as many."""
    others = tuple(b for b in second.reads if b not in first.writes)
    return dataclasses.replace(
        first,
        macs=first.macs + second.macs,
        # four numbers a channel become a bias
        weights=first.weights + (second.weights // 4 if second.kind in BATCH_NORM else second.weights),
        read=first.read + second.read - between,
        written=second.written,
        reads=tuple(dict.fromkeys((*first.reads, *others))),
        pointwise=first.pointwise and second.pointwise,
    )


def _record(example: Sequence[int] | tuple, module: nn.Module, device: torch.device) -> Operations:
    if all(isinstance(size, int) for size in example):
        example = (torch.empty(1, *example, device="meta"),)
    inputs = inputs_like(example, module, device)
    running = [""]
    for name, child in module.named_modules():
        child.register_forward_pre_hook(lambda *_, name=name: running.append(name))
        child.register_forward_hook(lambda *_: running.pop() and None, always_call=True)
    with _Recorder([*module.parameters(), *module.buffers()], running) as recorder:
        given = tuple(recorder.buffer(tensor) for tensor in _tensors(inputs))
        outputs = tuple(b for tensor in _tensors(module(*inputs)) if (b := recorder.buffer(tensor)) is not None)
    return Operations(tuple(recorder.operations), tuple(recorder.sizes), tuple(recorder.integers), given, outputs)


class _Recorder(TorchDispatchMode):
    """Writes down what runs within it, and keeps what it makes, so that no buffer takes the place of another."""

    def __init__(self, weights: Iterable[Tensor], running: Sequence[str]) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.sizes: list[int] = []
        self.integers: list[int] = []
        self._running, self._counter = running, flop_counter()
        self._buffers: dict[int, int | None] = {}  # by storage; None for a constant
        self._kept: list[torch.UntypedStorage] = []
        for tensor in weights:
            self._keep(tensor, None)

    def buffer(self, tensor: Tensor) -> int | None:
        """The buffer that `tensor` lies in, a new one if it is not known; None for weights."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._buffers:
            self._keep(tensor, len(self.sizes))
            self.sizes.append(storage.nbytes() // tensor.element_size())
            self.integers.append(0 if tensor.is_floating_point() else tensor.element_size())
        return self._buffers[storage._cdata]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        flops = self._counter.flop_registry.get(func._overloadpacket)
        if flops is None:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        given, made = _tensors((args, kwargs)), [tensor for tensor in _tensors(result) if tensor.numel()]
        activations = [tensor for tensor in given if self.buffer(tensor) is not None]
        if not activations:
            for tensor in made:
                self._keep(tensor, None)
        elif not func.is_view and made:
            name = func._overloadpacket.__name__
            made = made[:1] if name in BATCH_NORM else made  # the others are statistics that nobody reads
            operation = Operation(
                self._running[-1],
                name,
                flops(*args, **kwargs, out_val=result) // 2 if flops else 0,
                sum(tensor.numel() for tensor in given if self.buffer(tensor) is None),
                sum(tensor.numel() for tensor in activations),
                sum(tensor.numel() for tensor in made),
                tuple(dict.fromkeys(self.buffer(tensor) for tensor in activations)),
                tuple(dict.fromkeys(self.buffer(tensor) for tensor in made)),
                torch.Tag.pointwise in func.tags or name in ALSO_POINTWISE,
            )
            if operation.writes != (None,):
                self.operations.append(operation)
        return result

    def _keep(self, tensor: Tensor, buffer: int | None) -> None:
        self._kept.append(tensor.untyped_storage())
        self._buffers[self._kept[-1]._cdata] = buffer


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
