"""Networks timed in turns, so that what else the machine does falls on all of them alike, and what that shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from predictors.measuring.runtimes import Timer

# T turns, N networks, R runs

CERTAIN = 3.0  # standard errors


class TimeRatio(NamedTuple):
    """How many times as long one network takes as another."""

    ratio: float
    standard_error: float  # of its logarithm, which is about that of the ratio relative to it

    @property
    def verdict(self) -> str:
        """ "faster" or "slower" if `CERTAIN` standard errors say so, or else "not distinguishable"."""
        distance = math.log(self.ratio)
        if abs(distance) <= CERTAIN * self.standard_error:
            return "not distinguishable"
        return "faster" if distance < 0 else "slower"


def turns_ms(timers: Sequence[Timer], turns: int, runs: int = 1) -> np.ndarray:
    """Milliseconds [T, N, R] of each timer's `runs` in each turn, each after a run to warm up; a turn before the first
    is not counted."""
    return np.array([[timer(runs + 1)[1:] for timer in timers] for _ in range(turns + 1)][1:])


def time_ratio(own_ms: np.ndarray, other_ms: np.ndarray) -> TimeRatio:
    """How many times as long one takes as the other, by the milliseconds [T, R] of each in the same turns.

    It is the median over turns of the ratio of both networks' medians within a turn. Its standard error is that of a
    median of normal values, sqrt(pi / 2 T) times their deviation, which is found as 1.4826 times the median absolute
    one: a turn in which the machine was busy with something else does not count for more than another.
    """
    logarithms = np.log(np.median(own_ms, axis=1)) - np.log(np.median(other_ms, axis=1))
    middle = float(np.median(logarithms))
    deviation = 1.4826 * float(np.median(np.abs(logarithms - middle)))
    return TimeRatio(math.exp(middle), math.sqrt(math.pi / 2 / len(logarithms)) * deviation)
