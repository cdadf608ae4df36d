"""Which choices a score follows from: how much of it each choice explains that no other does, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import brentq

# n architectures, c choices, p columns of indicators

LEAST = 10  # degrees of freedom that have to be left to tell an effect from the rest


class Importance(NamedTuple):
    """Of one choice: the part, from 0 to 1, of what all other choices leave of the score's variance that it explains
    (partial omega squared, below 0 where that is less than chance), and the interval of 95 % of that part."""

    choice: str
    share: float
    low: float
    high: float


def importances(choices: Mapping[str, Sequence], codes: np.ndarray, score: np.ndarray) -> list[Importance]:
    """The importance of each of the `choices` that can be told from the others, the greatest share first.

    `codes` [n, c] are the positions of the values, -1 where a choice does not apply; `score` is [n]. An additive model
    of indicators of the values is fitted by least squares with and without the choice. With the F statistic of the two,
    on d and r degrees of freedom, the share is d (F - 1) / (d (F - 1) + n), and the interval that of the noncentrality
    L of F's distribution as L / (L + n) (Steiger, Beyond the F test, Psychological Methods 9, 2004). It holds for
    architectures drawn at random, which those that a search evaluates are not. Empty where they are too few to tell.
    """
    known = np.isfinite(score)
    codes, score = codes[known], score[known]
    if len(score) < LEAST:
        return []
    columns = {name: _indicators(codes[:, index]) for index, name in enumerate(choices)}
    columns = {name: own for name, own in columns.items() if own.shape[1]}
    rest, rank = _left(list(columns.values()), score)
    freedom = len(score) - rank
    if freedom < LEAST or not rest > 1e-12 * np.square(score).sum():
        return []
    found = []
    for name in columns:
        without, smaller = _left([own for other, own in columns.items() if other != name], score)
        if (degrees := rank - smaller) > 0:  # else other choices say the same
            f = ((without - rest) / degrees) / (rest / freedom)
            excess = degrees * (f - 1)
            low, high = (_noncentrality(f, degrees, freedom, level) for level in (0.975, 0.025))
            n = len(score)
            found.append(Importance(name, excess / (excess + n), low / (low + n), high / (high + n)))
    return sorted(found, key=lambda own: -own.share)


def _indicators(codes: np.ndarray) -> np.ndarray:
    """Columns [n, p] that are 1 where a choice has each of its values but the first."""
    return (codes[:, None] == np.unique(codes)[1:]).astype(float)


def _left(columns: Sequence[np.ndarray], score: np.ndarray) -> tuple[float, int]:
    """The sum of squares that an additive model leaves, and its rank."""
    design = np.column_stack([np.ones(len(score)), *columns])
    solution, _, rank, _ = np.linalg.lstsq(design, score, rcond=None)
    return float(np.square(score - design @ solution).sum()), int(rank)


def _noncentrality(f: float, degrees: int, freedom: int, level: float) -> float:
    """The noncentrality with which a statistic is below `f` with probability `level`; 0 where there is none."""

    def beyond(noncentrality: float) -> float:
        return float(stats.ncf.cdf(f, degrees, freedom, noncentrality)) - level

    if beyond(1e-9) <= 0:
        return 0.0
    most = 10.0 + 4 * f * degrees
    return float(brentq(beyond, 1e-9, most)) if beyond(most) < 0 else most
