"""Architectures of any search space as points, so that a kernel may compare them.

Three views of an architecture, each a sum of one table row a choice: how often every value occurs among the choices
that share it, the values as numbers, and the values one by one. Few measurements suffice for the first two, many
are needed for the last; a predictor weighs them by their evidence.
"""

from __future__ import annotations

import functools

import numpy as np

from supernet.space import SearchSpace

# n architectures, c choices, v values of all choices together, d dimensions of a view

SAMPLE = 2000  # random architectures that stand for the space


class Embedding:
    """The views of a search space, centred and scaled to mean square norm 1 over its random architectures.

    `sample` [k, v] indicates the values of k random architectures, always the same ones with `sample_archs`, and
    `centre` [v] is their mean. `groups` holds, for choices that share their values, the columns [g, o] of their values.
    """

    def __init__(self, space: SearchSpace):
        self.space = space
        sizes = [len(choice.values) for choice in space.choices.values()]
        self._offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.size = sum(sizes)
        generator = np.random.default_rng(0)
        self.sample_archs = [space.sample(generator) for _ in range(SAMPLE)]
        self.sample_codes = space.encode(self.sample_archs)
        self.sample = self.indicators(self.sample_codes)
        self.centre = self.sample.mean(axis=0)
        by_values: dict[tuple, list[np.ndarray]] = {}
        for start, choice in zip(self._offsets, space.choices.values()):
            by_values.setdefault(tuple(choice.values), []).append(start + np.arange(len(choice.values)))
        self.groups = [np.array(rows) for rows in by_values.values()]
        self.tables = [self.scaled(table) for table in (self._shared(), self._numeric(), np.eye(self.size))]

    @functools.cached_property
    def covariance(self) -> np.ndarray:
        """The covariance [v, v] of the indicators of random architectures."""
        return np.cov(self.sample.T, bias=True)

    def scaled(self, table: np.ndarray) -> np.ndarray:
        """`table` [v, d] scaled so that the points of random architectures have mean square norm 1."""
        norm = np.sqrt(((self.covariance @ table) * table).sum())
        return table / (norm or 1.0)

    def indicators(self, codes: np.ndarray, dtype: type = np.float64) -> np.ndarray:
        """Which values each architecture has: ones and zeros [n, v] from codes [n, c]."""
        rows, columns = np.nonzero(codes >= 0)
        indicators = np.zeros((len(codes), self.size), dtype)
        indicators[rows, self._offsets[columns] + codes[rows, columns]] = 1
        return indicators

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

    def _shared(self) -> np.ndarray:
        table = np.zeros((self.size, self.size))
        for rows in self.groups:
            for row in rows:
                table[row, rows[0]] = 1
        return table[:, table.any(axis=0)]

    def _numeric(self) -> np.ndarray:
        """A column for the standardised value of each ordered choice, and one for whether it applies at all."""
        table = np.zeros((self.size, 2 * len(self.space.choices)))
        for column, (start, choice) in enumerate(zip(self._offsets, self.space.choices.values())):
            if choice.ordered and len(choice.values) > 1:
                values = np.array(choice.values, dtype=float)
                rows = slice(start, start + len(values))
                table[rows, 2 * column] = (values - values.mean()) / values.std()
                table[rows, 2 * column + 1] = bool(choice.when)
        return table[:, table.any(axis=0)]


@functools.lru_cache(maxsize=8)
def embedding(space: SearchSpace) -> Embedding:
    return Embedding(space)
