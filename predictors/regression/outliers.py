"""Measurements far from what all others make of them: a pause of the machine, a phone that is too hot.

Least squares follow them. So each is pulled in to the edge of what is common, and the rest decides where that is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from predictors.regression.mixture import Mixture
from predictors.regression.regressors import Measured

# m measurements

FEWEST = 200  # measurements from which on a model knows what is common
EDGE = 2.0  # standard deviations, as the median error tells them
TO_STANDARD_DEVIATION = 1.4826  # of a normal distribution, by its median absolute error
ROUNDS = 2


def pulled_in(measured: Measured, fit: Callable[[Measured], Mixture]) -> Measured:
    """The measurements, with relative errors of at most `EDGE` standard deviations.

    With p_i what `fit` makes of the i-th latency y_i (for the first 1,000 without it), e_i = log(y_i / p_i) - median(e)
    and s 1.4826 times the median of |e_i|, y_i becomes y_i exp(clip(e_i, -EDGE s, EDGE s) - e_i), and the fit is done
    again: Huber's M-estimate by modified residuals (Huber & Ronchetti 2009, section 7.8). Fewer than `FEWEST` stay as
    they are.
    """
    found = measured
    if len(measured.latency_ms) < FEWEST:
        return found
    for _ in range(ROUNDS):
        fitted = fit(found)
        predicted_ms, _ = fitted.predict(measured.indicators)
        left_out_ms, _ = fitted.left_out()
        predicted_ms[: len(left_out_ms)] = left_out_ms
        error = np.log(measured.latency_ms / predicted_ms)
        error -= np.median(error)
        edge = EDGE * TO_STANDARD_DEVIATION * np.median(np.abs(error))
        latency_ms = measured.latency_ms * np.exp(np.clip(error, -edge, edge) - error)
        found = replace(measured, latency_ms=latency_ms)
    return found
