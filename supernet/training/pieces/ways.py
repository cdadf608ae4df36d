"""The ways in which the pieces of subnets may run, and the choice between them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from supernet.supernet import StandIn
from supernet.training.execution import Execution
from supernet.training.pieces.compiled import CompiledPieces
from supernet.training.pieces.graphs import GraphedPieces
from supernet.training.pieces.recording import CudaRecorder

logger = logging.getLogger(__name__)

TRIED_STEPS = 60  # of each way, in which graphs of most pieces get recorded and layers meet most shapes
TIMED_STEPS = 10  # of each way after that


class Ways:
    """Several ways, by name, of which the first steps of a training show the fastest; None is as the pieces are.

    Each is tried for `TRIED_STEPS` steps, and then each for `TIMED_STEPS`, the medians of which decide. They take
    turns, so that all have the same resolutions, where these stay for several steps. `wait` makes their seconds those
    of the device and not of launching its work.
    """

    def __init__(
        self,
        ways: Mapping[str, StandIn | None],
        wait: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._ways, self._wait, self._clock = ways, wait, clock
        steps = [False] * TRIED_STEPS + [True] * TIMED_STEPS
        self._left = [(name, is_timed) for is_timed in steps for name in ways]
        self._seconds: dict[str, list[float]] = {name: [] for name in ways}
        self._chosen = next(iter(ways)) if len(ways) == 1 else None

    @contextmanager
    def step(self) -> Iterator[StandIn | None]:
        """The context of a step, its update included: what stands in for the pieces of subnets in it."""
        if self._chosen is not None:
            yield self._ways[self._chosen]
            return
        name, is_timed = self._left.pop(0)
        if is_timed:
            self._wait()
        begun = self._clock()
        yield self._ways[name]
        if is_timed:
            self._wait()
            self._seconds[name].append(self._clock() - begun)
        if not self._left:
            medians = {name: float(np.median(seconds)) for name, seconds in self._seconds.items()}
            self._chosen = min(medians, key=medians.get)
            found = ", ".join(f"{name} {1000 * median:.0f} ms" for name, median in medians.items())
            logger.info("steps are executed as %s from now on: %s", self._chosen, found)


def ways_of(execution: Execution, device: torch.device) -> Ways:
    """The ways that `execution` names, on `device`; ValueError for one that it does not have."""
    if execution.step == "compile":
        return Ways({"compile": CompiledPieces()})
    if execution.step == "eager" or (execution.step == "auto" and device.type != "cuda"):
        return Ways({"eager": None})
    if device.type != "cuda":
        raise ValueError(f"step graphs needs a GPU, and this training is on {device}: say eager or compile")
    total = torch.cuda.get_device_properties(device).total_memory
    graphs = GraphedPieces(CudaRecorder(device), total // 4)
    if execution.step == "graphs":
        return Ways({"graphs": graphs})
    return Ways({"eager": None, "graphs": graphs}, lambda: torch.cuda.synchronize(device))
