"""What evaluates a list of architectures by scores: this process, or each of many Ray workers.

A worker is a process that imports this module and whatever its scores need. Nothing here imports torch, which takes
more memory than all else in the process of a worker: scores that look values up do without it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from search.problem import Score, placed
from supernet.space import Arch

if TYPE_CHECKING:
    from search.history import Rejection


class Scored(NamedTuple):
    """The evaluation of the architecture at `index` of a list: its scores, or the reason why there are none."""

    index: int
    scores: Mapping[str, float]
    error: str | None = None
    rejected: Rejection | None = None


Evaluator = Callable[[Sequence[Arch]], Iterator[Scored]]  # one an architecture, in any order


class EvaluatorOfParts(Protocol):
    """An evaluator that may be asked for scores on some of the examples that judge, by their indices; None for all."""

    def __call__(self, archs: Sequence[Arch], examples: np.ndarray | None = None) -> Iterator[Scored]: ...


def evaluate_here(scores: Mapping[str, Score]) -> EvaluatorOfParts:
    """The evaluator that calls `scores` in this process.

    A score may have a method `each(archs)` that yields the index and the value of an architecture, or the exception
    that evaluating it raised, as soon as it is known. Of several scores the last one's values then come one by one.
    Another score is called with the whole list; if that raises, it is called for each architecture by itself.

    If it is asked for a part of the examples, `each` gets their indices as a second argument.

    What a score raises is the evaluation's error, but for a GPU's memory being too small, which is raised: with smaller
    batches there is a value.
    """

    def evaluate(archs: Sequence[Arch], examples: np.ndarray | None = None) -> Iterator[Scored]:
        *first, last = scores
        part = () if examples is None else (examples,)
        columns = {name: dict(_each(scores[name], archs, *part)) for name in first}
        for index, value in _each(scores[last], archs, *part):
            row = {name: column[index] for name, column in columns.items()} | {last: value}
            failed = {name: value for name, value in row.items() if isinstance(value, Exception)}
            for value in failed.values():
                if _is_torch_out_of_memory(value):
                    raise value
            errors = [f"{name}: {_reason(value)}" for name, value in failed.items()]
            yield Scored(index, {} if errors else row, "; ".join(errors) or None)

    return evaluate


def in_order(found: Iterator[tuple[int, float | Exception]]) -> list[float]:
    """The values that a score's `each` gives, in the order of the architectures; raises what evaluating one raised."""
    values = dict(found)
    for value in values.values():
        if isinstance(value, Exception):
            raise value
    return [values[index] for index in sorted(values)]


def _each(score: Score, archs: Sequence[Arch], *part: np.ndarray) -> Iterator[tuple[int, float | Exception]]:
    if part or hasattr(score, "each"):
        yield from score.each(archs, *part)
        return
    try:
        yield from enumerate([float(value) for value in score(archs)])
    except Exception as error:
        if len(archs) == 1:
            yield 0, error
            return
        for index, arch in enumerate(archs):
            yield from ((index, value) for _, value in _each(score, [arch]))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class RayWorker:
    """Evaluates by `scores` on `device`, such as cpu or cuda, with so many CPU `threads`."""

    def __init__(self, scores: Mapping[str, Score], threads: int, device: str) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of a torch that is imported later
        self._threads, self._device = threads, device
        self.hold(scores)

    def hold(self, scores: Mapping[str, Score]) -> None:
        """Evaluate by `scores` from now on."""
        self._evaluate = evaluate_here({name: placed(score, self._device) for name, score in scores.items()})

    def ready(self) -> None:
        """Returns when the worker holds its scores."""

    def evaluate(self, archs: Sequence[Arch], examples: np.ndarray | None = None) -> list[Scored]:
        with ExitStack() as stack:
            if self._device != "cpu" or sys.modules.get("torch"):
                import torch

                from supernet.training.execution import tf32

                torch.set_num_threads(self._threads)
                stack.enter_context(tf32(False))
            return list(self._evaluate(archs, examples))


def _is_torch_out_of_memory(value: Exception) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.OutOfMemoryError)
