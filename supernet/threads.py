"""Several computations at a time, each on one core."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def single_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of `count` threads, in each of which torch computes on one core.

    Running the batches of a small network side by side takes less time than sharing out every operation among the
    cores, and the results do not depend on the number of cores.
    """
    cores = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(cores)  # what a thread sets holds for those that start later, too
