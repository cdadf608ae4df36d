"""The strategy of those who know the order of architectures before any is evaluated."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from supernet.space import Arch


class GivenOrder:
    """The architectures of an iterator, `batch` at a time, in its order: admissible ones, each once."""

    def __init__(self, archs: Iterator[Arch], batch: int = 100) -> None:
        self._archs = archs
        self._batch = batch

    def ask(self) -> list[Arch]:
        return list(itertools.islice(self._archs, self._batch))

    def tell(self, archs: Sequence[Arch], scores: np.ndarray) -> None:
        """Nothing is learnt from scores."""
