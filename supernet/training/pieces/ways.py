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
from supernet.training.pieces.graphs import CudaRecorder, GraphedPieces

logger = logging.getLogger(__name__)

TRIED_STEPS = 60  # of each way, in which graphs of most pieces get recorded
TIMED_STEPS = 10  # the last of them


class Ways:
    """Several ways, by name, of which the first steps of a training show the fastest; None is as the pieces are.

    Each is tried for `TRIED_STEPS` steps. The median of the last of them decides, which `wait` makes the device's time
    and not that of launching its work.
    """

    def __init__(
        self,
        ways: Mapping[str, StandIn | None],
        wait: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._ways, self._wait, self._clock = ways, wait, clock
        self._seconds: dict[str, list[float]] = {}
        self._chosen = next(iter(ways)) if len(ways) == 1 else None

    @contextmanager
    def step(self) -> Iterator[StandIn | None]:
        """The context of a step: what stands in for the pieces of subnets in it."""
        if self._chosen is not None:
            yield self._ways[self._chosen]
            return
        name = next(name for name in self._ways if len(self._seconds.get(name, ())) < TRIED_STEPS)
        self._wait()
        begun = self._clock()
        yield self._ways[name]
        self._wait()
        self._seconds.setdefault(name, []).append(self._clock() - begun)
        if all(len(self._seconds.get(name, ())) == TRIED_STEPS for name in self._ways):
            medians = {name: float(np.median(times[-TIMED_STEPS:])) for name, times in self._seconds.items()}
            self._chosen = min(medians, key=medians.get)
            logger.info(
                "steps are executed as %s from now on: %s",
                self._chosen,
                ", ".join(f"{name} {1000 * median:.0f} ms" for name, median in medians.items()),
            )


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
