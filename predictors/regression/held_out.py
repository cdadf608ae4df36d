"""How wrong a predictor is on architectures that it has not seen, its own making included.

A predictor that was chosen and weighed by its errors on some measurements looks better on these than on others. So
everything is done again without a part of the architectures, a tenth at a time, and judged by that part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import norm, t

from predictors.regression.mixture import Mixture
from predictors.regression.regressors import Measured

# m measurements

FOLDS = 10
MOST = 200  # measurements; with more, choosing by them makes no difference, and what a fit leaves out is held out
TRUST = 3  # held-out architectures that it takes to outweigh what a model says of its own errors


class HeldOut(NamedTuple):
    """Each measurement as predicted without its architecture."""

    latency_ms: np.ndarray  # [m]
    standard_error_ms: np.ndarray  # [m]


def held_out(measured: Measured, fit: Callable[[Measured], Mixture], fitted: Mixture) -> HeldOut:
    """The prediction for each measurement by what `fit` makes of nine tenths of the architectures, its own not among
    them.

    With more than `MOST` measurements, what `fitted` predicts of each measurement that it leaves out
    (`Mixture.left_out`).
    """
    if len(measured.latency_ms) > MOST:
        return HeldOut(*fitted.left_out())
    fold = measured.architectures % FOLDS
    found = np.empty((2, len(fold)))
    for number in np.unique(fold):
        out = fold == number
        found[:, out] = fit(measured.part(~out)).predict(measured.indicators[out])
    return HeldOut(*found)


def error_scale(measured: Measured, found: HeldOut) -> float:
    """What a mixture's standard errors are multiplied by, for 1.96 of them on either side to hold 95 % of latencies.

    With z_i the errors on held-out measurements in standard errors, their squares averaged over the n architectures,
    it is sqrt((sum z_i^2 + TRUST) / (n + TRUST)), held close to 1 if few say otherwise, times the quotient of the
    quantiles of Student's t with n degrees of freedom and of the normal distribution, since n errors tell their own
    size no better than that.
    """
    count = len(found.latency_ms)
    surprise = ((measured.latency_ms[:count] - found.latency_ms) / found.standard_error_ms) ** 2
    _, architectures, repeats = np.unique(measured.architectures[:count], return_inverse=True, return_counts=True)
    n = len(repeats)
    total = (surprise / repeats[architectures]).sum()
    return float(np.sqrt((total + TRUST) / (n + TRUST)) * t.ppf(0.975, n) / norm.ppf(0.975))
