"""How well a measurement repeats itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from predictors.measuring.measurements import Measurement

NOISE_SUBNETS = 50


def relative_differences(first: Sequence[Measurement], second: Sequence[Measurement]) -> np.ndarray:
    """(a - b) / ((a + b) / 2) for every architecture that both measured, in the order of `first`.

    The mean of the absolute values over 50 subnets, measured twice with nothing in common, is the *noise floor*.
    ValueError if there is no such architecture.
    """
    again = {row.arch: row.latency_ms for row in second if not row.reference and not row.error}
    pairs = [
        (row.latency_ms, again[row.arch]) for row in first if row.arch in again and not row.reference and not row.error
    ]
    if not pairs:
        raise ValueError("no architecture was measured both times")
    a, b = np.array(pairs).T
    return (a - b) / ((a + b) / 2)
