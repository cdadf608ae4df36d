"""Training in several processes, as started by `torchrun`: each has its own images.

DistributedDataParallel averages a gradient when it expects it to be complete, and counts on every backward pass to use
every parameter; a step of several subnets, each with its own parameters, breaks both. Here the gradients of all subnets
of a step are averaged once, bucket by bucket, while the last backward pass of the step runs.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from supernet.errors import first_line

Item = TypeVar("Item")
Value = TypeVar("Value")

BUCKET_BYTES = 25 * 2**20
"""Of gradients that are averaged together; DistributedDataParallel's."""
IN_FLIGHT = 2
"""Buckets of which there are copies at a time."""
_GLOO_LOST = re.compile(r"\[\S*gloo/transport/")
"""How gloo's errors of a connection begin, which are plain RuntimeErrors: with where in its source they are raised."""


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


def check_split(batch_size: int, processes: int, parts: int) -> None:
    """ValueError unless a batch splits into equal parts, `parts` for each process."""
    if batch_size % (processes * parts):
        raise ValueError(
            f"a batch of {batch_size} does not split into {processes * parts} equal parts, for {processes} processes "
            f"that do {parts} one after another"
        )


def average(values: Tensor) -> Tensor:
    """The mean over all processes, in place."""
    if world_size() > 1:
        with _others():
            dist.all_reduce(values)
        values /= world_size()
    return values


class _Averaged(NamedTuple):
    """A bucket on its way through the other processes."""

    parameters: list[nn.Parameter]
    joint: Tensor  # their gradients one after another, and, if not alike, of each how many processes have one
    work: dist.Work


class GradientAverage:
    """Replaces the gradients of `parameters` by their means over all processes::

        average = GradientAverage(net.parameters())
        for loss in losses:
            if loss is losses[-1]:
                average.begin(complete)
            loss.backward()
        average.finish()

    They go out in buckets of about `BUCKET_BYTES`. All processes have one order of the buckets, that in which a
    backward pass has their gradients: from the last parameter to the first, and then those of `late`. After `begin`, a
    bucket is sent when those before it are and its own gradients are complete, and travels while the backward pass goes
    on; `finish` sends the others and waits for all.

    With `alike` all processes have gradients for the same parameters. Otherwise no gradient counts as one of zeros, and
    as none where no process has one; all parameters are then sent.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], late: Iterable[nn.Parameter] = (), *, alike: bool = True
    ) -> None:
        late = set(late)
        self._alike = alike
        self._buckets = _buckets(sorted(reversed(list(parameters)), key=late.__contains__))
        self._bucket_of = {parameter: index for index, bucket in enumerate(self._buckets) for parameter in bucket}
        self._awaited: list[set[nn.Parameter]] = []  # by bucket, those whose gradients are not complete
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._sent = 0  # buckets
        self._on_their_way: deque[_Averaged] = deque()

    def begin(self, complete: Iterable[nn.Parameter] = ()) -> None:
        """The backward pass that follows is the step's last, and has nothing to add to the gradients of `complete`."""
        complete = set(complete)
        self._awaited = [{p for p in bucket if p.requires_grad and p not in complete} for bucket in self._buckets]
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self.arrived)
            for awaited in self._awaited
            for parameter in awaited
        ]
        self._send_complete()

    def arrived(self, parameter: nn.Parameter) -> None:
        """The gradient of `parameter` is complete, after `begin`; of gradients that autograd adds this is known."""
        index = self._bucket_of[parameter]
        assert index >= self._sent, "a gradient came that was said to be complete"
        self._awaited[index].discard(parameter)
        self._send_complete()

    def finish(self) -> None:
        """All gradients are complete: return when all of them are averaged."""
        for hook in self._hooks:
            hook.remove()
        while self._sent < len(self._buckets):
            self._send()
        while self._on_their_way:
            self._receive()
        self._awaited, self._hooks, self._sent = [], [], 0

    def _send_complete(self) -> None:
        while self._sent < len(self._buckets) and not self._awaited[self._sent]:
            self._send()

    def _send(self) -> None:
        """The next bucket, if there are gradients in it."""
        bucket = self._buckets[self._sent]
        parameters = [p for p in bucket if (p.grad is not None if self._alike else p.requires_grad)]
        self._sent += 1
        if not parameters:
            return
        if len(self._on_their_way) == IN_FLIGHT:
            self._receive()
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        if not self._alike:
            held = torch.tensor([p.grad is not None for p in parameters])
            parts.append(held.to(parts[0], non_blocking=True))
        joint = torch.cat(parts)
        with _others():
            work = dist.all_reduce(joint, async_op=True)
        self._on_their_way.append(_Averaged(parameters, joint, work))

    def _receive(self) -> None:
        parameters, joint, work = self._on_their_way.popleft()
        with _others():
            work.wait()
        joint /= world_size()
        sizes = [parameter.numel() for parameter in parameters]
        means = joint[: sum(sizes)].split(sizes)
        lacking = []
        for index, (parameter, mean) in enumerate(zip(parameters, means)):
            if parameter.grad is None:
                lacking.append(index)
            else:
                parameter.grad.copy_(mean.view(parameter.shape))
        if lacking:  # on a GPU the only values of a step that are waited for
            held = joint[sum(sizes) :].tolist()
            for index in lacking:
                if held[index]:
                    parameter = parameters[index]
                    parameter.grad = torch.zeros_like(parameter).copy_(means[index].view(parameter.shape))


def _buckets(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """`parameters` in parts of one type and of about `BUCKET_BYTES`."""
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        if not buckets or size >= BUCKET_BYTES or buckets[-1][0].dtype != parameter.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.numel() * parameter.element_size()
    return buckets


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
    """What takes other processes: LostProcess if one of them is gone, and this process's own errors as they are."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not _GLOO_LOST.match(str(error)):
            raise
        raise LostProcess(
            f"another process of this training has ended ({first_line(error)}): see what it says, and go on with "
            "--resume"
        ) from error
