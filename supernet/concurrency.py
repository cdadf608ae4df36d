"""Several computations at a time, on their shares of the cores."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


def at_a_time(device: torch.device) -> int:
    """How many computations a device is best given at a time: on a CPU one for each of torch's cores."""
    return torch.get_num_threads() if device.type == "cpu" else 1


@contextmanager
def side_by_side(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of `count` threads, among which torch's cores are shared out, to each at least one.

    Running the batches of a small network side by side takes less time than sharing out every operation among the
    cores.
    """
    cores = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(max(1, cores // count),)) as pool:
            yield pool
    finally:
        torch.set_num_threads(cores)  # what a thread sets holds for those that start later, too
