"""Recording work of a GPU, to be done again at the cost of a single launch."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch


class Recorded(Protocol):
    """What a recorder gives: work on fixed addresses, to be done again."""

    def replay(self) -> None: ...


class Recorder(Protocol):
    """Records work for graphs."""

    def record(self, work: Callable[[], None], pool: Any) -> Recorded:
        """`work`, which is called once and takes no effect, in the memory of `pool`."""

    def pool(self) -> Any:
        """A memory of its own, in which work is recorded that is never done at the same time."""

    def reserved_bytes(self) -> int:
        """What is taken of the device's memory."""


class CudaRecorder:
    """Records CUDA graphs, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        with torch.cuda.device(device), torch.cuda.stream(self._stream):  # what libraries keep for each stream
            torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)

    def record(self, work: Callable[[], None], pool: Any) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        drawn = _host_generators()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool, capture_error_mode="thread_local")  # other threads load images meanwhile
            try:
                work()
            finally:
                graph.capture_end()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        if _host_generators() != drawn:
            raise ValueError("it draws random numbers on the host, where a graph always has the same ones")
        return graph

    def pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def reserved_bytes(self) -> int:
        return torch.cuda.memory_reserved(self._device)


def _host_generators() -> tuple[object, ...]:
    """The states of the generators of random numbers on the host."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), (name, keys.tobytes(), *rest), bytes(torch.get_rng_state().numpy())
