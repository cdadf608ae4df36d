"""Batches a step ahead: the next one is loaded, copied and normalised while a GPU computes the step of the last one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from supernet.training.data.batch import Batch


class OnItsWay(NamedTuple):
    """A batch that is usable where its lane has been waited for."""

    batch: Batch
    event: Any


class Lane(Protocol):
    """Work of a device beside that of the steps."""

    def begin(self, work: Callable[[], Batch]) -> OnItsWay:
        """What `work` gives; what it has the device do goes beside the steps, and is not waited for."""

    def wait(self, coming: OnItsWay) -> None:
        """Let the steps, but not this process, wait for a batch of the lane."""


class SideStream:
    """A lane on a GPU: a CUDA stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))  # which may have made the data

    def begin(self, work: Callable[[], Batch]) -> OnItsWay:
        with torch.cuda.stream(self._stream):
            return OnItsWay(work(), self._stream.record_event())

    def wait(self, coming: OnItsWay) -> None:
        steps = torch.cuda.current_stream(self._device)
        steps.wait_event(coming.event)
        for leaf in tree_leaves(coming.batch):
            if isinstance(leaf, Tensor) and leaf.is_cuda:
                leaf.record_stream(steps)  # the lane does not get its memory back before the steps are done with it


def lane_of(device: torch.device) -> Lane | None:
    """The lane of a device that computes while Python goes on; None for one that has none."""
    return SideStream(device) if device.type == "cuda" else None


def ahead(batches: Iterable[Batch], lane: Lane) -> Iterator[Batch]:
    """`batches`, each begun in `lane` before the one before it is given. What goes wrong with a batch is raised when it
    is that batch's turn."""
    batches, end = iter(batches), object()

    def begun() -> Future[OnItsWay]:
        future: Future[OnItsWay] = Future()
        try:
            future.set_result(lane.begin(lambda: next(batches, end)))
        except Exception as error:
            future.set_exception(error)
        return future

    following = begun()
    while (coming := following.result()).batch is not end:
        lane.wait(coming)
        following = begun()
        yield coming.batch
