"""Architectures of any search space as points, so that a kernel may compare them.

Three views of an architecture, each a sum of one table row a choice: how often every value occurs among the choices
that share it, the values as numbers, and the values one by one. Few measurements suffice for the first two, many
are needed for the last; a predictor weighs them by their evidence.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from supernet.space import SearchSpace

# n architectures, c choices, v values of all choices together, d dimensions of a view

VIEWS = ("shared", "numeric", "single")


class Embedding:
    """The views of a search space, centred and scaled to mean square norm 1 over its random architectures."""

    def __init__(self, space: SearchSpace):
        self.space = space
        sizes = [len(choice.values) for choice in space.choices.values()]
        self._offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self._size = sum(sizes)
        sample = self.indicators(_random_codes(space))
        self.tables: list[np.ndarray] = []  # one [v, d] a view
        self.centres: list[np.ndarray] = []  # one [d] a view
        for table in _tables(space):
            points = sample @ table
            points_mean = points.mean(axis=0)
            norm = np.sqrt(((points - points_mean) ** 2).sum(axis=1).mean()) if table.size else 0.0
            self.tables.append(table / (norm or 1.0))
            self.centres.append(points_mean / (norm or 1.0))

    def indicators(self, codes: np.ndarray, dtype: type = np.float64) -> np.ndarray:
        """Which values each architecture has: ones and zeros [n, v] from codes [n, c]."""
        rows, columns = np.nonzero(codes >= 0)
        indicators = np.zeros((len(codes), self._size), dtype)
        indicators[rows, self._offsets[columns] + codes[rows, columns]] = 1
        return indicators

    def points(self, codes: np.ndarray) -> list[np.ndarray]:
        """The views of the architectures, each [n, d], from codes [n, c]."""
        indicators = self.indicators(codes)
        return [indicators @ table - centre for table, centre in zip(self.tables, self.centres)]

    def check(self, codes: np.ndarray) -> np.ndarray:
        """`codes` as an array; ValueError unless they are codes of this space."""
        codes = np.asarray(codes)
        sizes = [len(choice.values) for choice in self.space.choices.values()]
        if codes.ndim != 2 or codes.shape[1] != len(sizes):
            raise ValueError(f"codes have shape [n, {len(sizes)}] in this space, not {list(codes.shape)}")
        if not np.issubdtype(codes.dtype, np.integer):
            raise ValueError(f"codes are integers, not {codes.dtype}")
        wrong = (codes < -1) | (codes >= np.array(sizes))
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            name = list(self.space.choices)[column]
            raise ValueError(f"code {codes[row, column]} of choice {name!r} is not among -1 to {sizes[column] - 1}")
        return codes


def _random_codes(space: SearchSpace, count: int = 1000) -> np.ndarray:
    generator = np.random.default_rng(0)
    return space.encode([space.sample(generator) for _ in range(count)])


def _tables(space: SearchSpace) -> list[np.ndarray]:
    """The tables [v, d] of the three views, not yet scaled."""
    groups: dict[tuple, int] = {}
    for choice in space.choices.values():
        groups.setdefault(tuple(choice.values), len(groups))
    shared, numeric, single = [], [], []
    shared_width = sum(len(values) for values in groups)
    shared_start = dict(zip(groups, np.cumsum([0, *(len(values) for values in groups)])))
    choices = list(space.choices.values())
    for column, choice in enumerate(choices):
        count = len(choice.values)
        rows = np.zeros((count, shared_width))
        start = shared_start[tuple(choice.values)]
        rows[:, start : start + count] = np.eye(count)
        shared.append(rows)
        rows = np.zeros((count, 2 * len(choices)))
        if choice.ordered and count > 1:
            values = np.array(choice.values, dtype=float)
            rows[:, 2 * column] = (values - values.mean()) / values.std()
            rows[:, 2 * column + 1] = bool(choice.when)  # whether it applies at all
        numeric.append(rows)
        single.append(np.eye(sum(len(other.values) for other in choices))[_span(choices, column)])
    return [np.concatenate(rows) for rows in (shared, numeric, single)]


def _span(choices: Sequence, column: int) -> slice:
    start = sum(len(choice.values) for choice in choices[:column])
    return slice(start, start + len(choices[column].values))


@functools.lru_cache(maxsize=8)
def embedding(space: SearchSpace) -> Embedding:
    return Embedding(space)
