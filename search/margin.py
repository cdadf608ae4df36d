"""How surely predicted latencies keep within a limit, and which measured ones do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import norm

from predictors import LatencyPredictor
from predictors.quantities import LATENCY, UNITS
from supernet.space import Arch

# n architectures

SURE = 0.95  # probability of keeping within a limit that needs no further word; 1.64 standard errors below it


def probability_within(predictor: LatencyPredictor, archs: Sequence[Arch], limit_ms: float) -> np.ndarray:
    """How probable it is [n], from 0 to 1, that a measurement of each architecture is at most `limit_ms`.

    Phi((limit - latency) / standard error), with the predicted latency and its standard error.
    """
    if not len(archs):
        return np.empty(0)
    latency_ms, standard_error_ms = predictor.predict(archs)
    return norm.cdf((limit_ms - latency_ms) / standard_error_ms)


def beyond_measurements(name: str, predictor: LatencyPredictor, limit_ms: float) -> str | None:
    """A line that says so if no architecture as fast as the limit was measured on the device `name`, or none slower;
    else None.

    Within such a limit, predictions go beyond what the predictor knows.
    """
    low, high = predictor.latency_ms.min(), predictor.latency_ms.max()
    unit = UNITS[predictor.quantity]
    measured = f"all {len(predictor.latency_ms)} measurements of its predictor, {low:.3g} to {high:.3g} {unit}"
    if limit_ms < low:
        return (
            f"the limit {name} <= {limit_ms:g} {unit} is below {measured}: what keeps within it was never measured, "
            "so measure smaller subnets as well"
        )
    if limit_ms > high:
        return f"the limit {name} <= {limit_ms:g} {unit} is above {measured}: values near it are extrapolated"
    return None


def limit_notes(
    name: str,
    limit_ms: float,
    probabilities: Sequence[float],
    measured_ms: Sequence[float] = (),
    quantity: str = LATENCY,
) -> list[str]:
    """Lines on a front whose latencies on the device `name` are limited: how many of its architectures keep within the
    limit with less than `SURE`, and how surely, and how many of those that were measured are slower.

    `measured_ms` is NaN where nothing was measured. There is no line where there is nothing to say.
    """
    probabilities = np.asarray(probabilities, dtype=float)
    measured = np.asarray(measured_ms, dtype=float)
    measured = measured[np.isfinite(measured)]
    unsure, slower = probabilities < SURE, measured > limit_ms
    lines, unit = [], UNITS[quantity]
    if unsure.any():
        lines.append(
            f"{_share(unsure, 'architecture')} predicted within {limit_ms:g} {unit} on {name} by less than 1.64 "
            f"standard errors: each keeps within the limit with a probability of {_range(probabilities[unsure], '.0%')}"
        )
    if slower.any():
        lines.append(
            f"{_share(slower, 'measured architecture')} slower than the limit of {limit_ms:g} {unit} on {name}: "
            f"{_range(measured[slower], '.4g')} {unit}"
        )
    return lines


def device_limits(limits: Mapping[str, float | None], predictors: Mapping[str, LatencyPredictor]) -> dict[str, float]:
    """Those of the limits that are on what `predictors` predict, the latencies of devices say, and finite."""
    return {name: limits[name] for name in predictors if np.isfinite(limits.get(name) or np.inf)}


def _share(which: np.ndarray, what: str) -> str:
    """'2 of the front's 7 architectures are', 'all 7 architectures of the front are', in grammatical number."""
    count, total = int(which.sum()), len(which)
    if total == 1:
        return f"the front's only {what} is"
    if count == total:
        return f"all {total} {what}s of the front are"
    return f"{count} of the front's {total} {what}s {'is' if count == 1 else 'are'}"


def _range(values: np.ndarray, form: str) -> str:
    low, high = (format(float(value), form) for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"
