"""Training in several processes, as started by `torchrun`: the same subnets in each, on different images.

DistributedDataParallel averages a gradient when it expects it to be complete, and counts on every backward pass to use
every parameter; a step of several subnets, each with its own parameters, breaks both. Here the gradients of all subnets
of a step are averaged once, at its end.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def start() -> None:
    """Join the processes that `torchrun` started; nothing in a process that it did not start."""
    if "RANK" in os.environ and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def rank() -> int:
    """This process's number, from 0; 0 is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def wait() -> None:
    """Go on when all processes have come here."""
    if dist.is_initialized():
        dist.barrier()


def average(values: Tensor) -> Tensor:
    """The mean over all processes, in place."""
    if world_size() > 1:
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
