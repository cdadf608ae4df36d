"""Training in several processes, as started by `torchrun`: the same subnets in each, on different images.

DistributedDataParallel averages a gradient when it expects it to be complete, and counts on every backward pass to use
every parameter; a step of several subnets, each with its own parameters, breaks both. Here the gradients of all subnets
of a step are averaged once, at its end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Item = TypeVar("Item")
Value = TypeVar("Value")


class LostProcess(RuntimeError):
    """Another process of this training has ended."""


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the processes that `torchrun` started, as long as the context lasts; nothing in a process that it did not
    start. They exchange tensors of the device that `device` names, as `supernet.training.execution.pick_device`."""
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, from 0; 0 is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def wait() -> None:
    """Go on when all processes have come here."""
    if dist.is_initialized():
        with _others():
            dist.barrier()


def average(values: Tensor) -> Tensor:
    """The mean over all processes, in place."""
    if world_size() > 1:
        with _others():
            dist.all_reduce(values)
        values /= world_size()
    return values


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes, which must have gradients for the same parameters."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if world_size() == 1 or not gradients:
        return
    joint = average(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, mean in zip(gradients, joint.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(mean.view(gradient.shape))


def from_first(make: Callable[[], Value]) -> Value:
    """What `make()` gives or raises in the first process, in all of them; the others do not call it."""
    if world_size() == 1:
        return make()
    found: list[object] = [None, None]
    if rank() == 0:
        try:
            found[0] = make()
        except Exception as error:
            found[1] = error
    with _others():
        dist.broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return found[0]


def spread(function: Callable[[Item], Value], items: Sequence[Item]) -> list[Value]:
    """`function` of each item, in their order, of which every process computes a share."""
    own = [function(item) for item in items[rank() :: world_size()]]
    if world_size() == 1:
        return own
    found: list[list[Value]] = [[] for _ in range(world_size())]
    with _others():
        dist.all_gather_object(found, own)
    return [found[index % world_size()][index // world_size()] for index in range(len(items))]


def share(tensors: Iterable[Tensor]) -> None:
    """Give `tensors` in all processes, in place, the values that they have in the first."""
    if world_size() > 1:
        with _others():
            for tensor in tensors:
                dist.broadcast(tensor, 0)


@contextmanager
def _others() -> Iterator[None]:
    """What takes other processes: LostProcess if one of them is gone."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise LostProcess(
            f"another process of this training has ended ({reason}): see what it says, and go on with --resume"
        ) from error
