"""Several computations at a time, on their shares of the cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch


def at_a_time(device: torch.device) -> int:
    """How many computations a device is best given at a time: on a CPU one for each of torch's cores."""
    return torch.get_num_threads() if device.type == "cpu" else 1


class Here(Executor):
    """Runs in the thread that submits, at once.

    A GPU is to be given its work by one and the same thread: what cuDNN sets up for a convolution, which takes up to
    seconds, torch keeps for each thread by itself, and for a new one it is set up again.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def side_by_side(count: int) -> Iterator[Executor]:
    """A pool of `count` threads, among which torch's cores are shared out, to each at least one; `Here` for a single
    one.

    Running the batches of a small network side by side takes less time than sharing out every operation among the
    cores. On a CPU the threads compute in the precision of the thread that made them (`torch.autocast`).
    """
    if count == 1:
        yield Here()
        return
    cores, autocast, dtype = torch.get_num_threads(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def begin() -> None:
        torch.set_num_threads(max(1, cores // count))
        torch.set_autocast_enabled("cpu", autocast)
        torch.set_autocast_dtype("cpu", dtype)

    try:
        with ThreadPoolExecutor(count, initializer=begin) as pool:
            yield pool
    finally:
        torch.set_num_threads(cores)  # what a thread sets holds for those that start later, too
