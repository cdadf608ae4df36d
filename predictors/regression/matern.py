"""Gaussian-process regression with smooth effects of all choices together.

    k(x, x') = c + sum_i a_i <x_i, x'_i> + s m(sqrt(sum_i b_i |x_i - x'_i|^2)) + noise
    m(d) = (1 + r + r^2 / 3) exp(-r),    r = sqrt(5) d

`x_i` [d] are views of a point: the linear part extrapolates, the Matérn kernel (Rasmussen & Williams 2006, eq. 4.17
with nu = 5/2) knows that points that are alike have values that are alike. The variances a, s and noise and the inverse
squared lengths b are those of greatest marginal likelihood (eq. 5.8 and 5.9) under weak priors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from predictors.regression.left_out import left_out

# n points, m measurements, d dimensions of a view, w views, h hyper-parameters

CONSTANT = 0.5  # variance of the constant; targets are standardised
START_VIEW, START_SMOOTH, START_NOISE = -1.0, 0.0, -4.0
PRIOR_WIDTH = 2.0  # standard deviation of the logarithms of hyper-parameters, about their start
LOWEST, HIGHEST = -10.0, 6.0
JITTER = 1e-6  # added to the noise
LEAST_VARIANCE = 1e-9
MOST_FOR_EVIDENCE = 300  # measurements on which the evidence is maximised

Views = Sequence[np.ndarray]  # w times [n, d]


@dataclass(frozen=True)
class Matern:
    """The posterior of standardised targets, given measurements."""

    log_parameters: np.ndarray  # [h]: of a, of b, of s, of the noise
    views: Views  # of the measurements
    targets: np.ndarray  # [m]
    inverse: np.ndarray  # [m, m], of the measurements' covariance
    left_out: np.ndarray  # [m]: the prediction for each measurement from all others
    left_out_variance: np.ndarray  # [m]: the variance of that prediction, noise included

    def predict(self, views: Views) -> tuple[np.ndarray, np.ndarray]:
        """Means [n] and variances [n], without the noise of a measurement, of points with the given views."""
        linear, _, smooth, _ = _split(self.log_parameters)
        kernel = _kernel(self.log_parameters, _inner(views, self.views), _squared_distances(views, self.views))
        own = CONSTANT + smooth + sum(a * (view**2).sum(axis=1) for a, view in zip(linear, views))
        explained = np.einsum("nm,nm->n", kernel @ self.inverse, kernel)
        return kernel @ (self.inverse @ self.targets), np.maximum(own - explained, LEAST_VARIANCE)


def maximise_evidence(views: Views, targets: np.ndarray, seed: int = 0) -> np.ndarray:
    """The logarithms [h] of the best hyper-parameters for standardised `targets` [m] at points with the given views."""
    part = np.sort(np.random.default_rng(seed).permutation(len(targets))[:MOST_FOR_EVIDENCE])
    views = [view[part] for view in views]
    start = np.array([START_VIEW] * 2 * len(views) + [START_SMOOTH, START_NOISE])
    found = minimize(
        _negative_evidence,
        start,
        args=(_inner(views, views), _squared_distances(views, views), targets[part], start),
        jac=True,
        method="L-BFGS-B",
        bounds=[(LOWEST, HIGHEST)] * len(start),
        options={"maxiter": 40, "ftol": 1e-6},
    )
    return found.x


def condition(views: Views, targets: np.ndarray, log_parameters: np.ndarray) -> Matern:
    """The posterior with the given hyper-parameters."""
    kernel = _kernel(log_parameters, _inner(views, views), _squared_distances(views, views))
    noise = np.exp(log_parameters[-1]) + JITTER
    inverse = np.linalg.inv(kernel + noise * np.eye(len(targets)))
    found = left_out(
        targets,
        inverse @ targets,
        inverse.diagonal(),
        lambda rows: inverse[np.ix_(rows, rows)],
        np.arange(len(targets)),
    )
    return Matern(log_parameters, views, targets, inverse, *found)


def _split(log_parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
    """a [w], b [w], s and the noise."""
    parameters = np.exp(log_parameters)
    count = (len(parameters) - 2) // 2
    return parameters[:count], parameters[count : 2 * count], float(parameters[-2]), float(parameters[-1])


def _inner(one: Views, other: Views) -> np.ndarray:
    """<x_i, x'_i> [w, n, n']."""
    return np.stack([a @ b.T for a, b in zip(one, other)])


def _squared_distances(one: Views, other: Views) -> np.ndarray:
    """|x_i - x'_i|^2 [w, n, n']."""
    norms = [((a**2).sum(axis=1), (b**2).sum(axis=1)) for a, b in zip(one, other)]
    own = np.stack([a[:, None] + b for a, b in norms])
    return np.maximum(own - 2 * _inner(one, other), 0)


def _kernel(log_parameters: np.ndarray, inner: np.ndarray, squared: np.ndarray) -> np.ndarray:
    linear, lengths, smooth, _ = _split(log_parameters)
    r = np.sqrt(5 * np.tensordot(lengths, squared, 1))
    return CONSTANT + np.tensordot(linear, inner, 1) + smooth * (1 + r + r**2 / 3) * np.exp(-r)


def _negative_evidence(
    log_parameters: np.ndarray, inner: np.ndarray, squared: np.ndarray, targets: np.ndarray, centre: np.ndarray
) -> tuple[float, np.ndarray]:
    """Minus the log posterior density of the hyper-parameters, and its gradient [h]."""
    linear, lengths, smooth, noise = _split(log_parameters)
    identity = np.eye(len(targets))
    r = np.sqrt(5 * np.tensordot(lengths, squared, 1))
    decay = np.exp(-r)
    matern = smooth * (1 + r + r**2 / 3) * decay
    kernel = CONSTANT + np.tensordot(linear, inner, 1) + matern
    factor = cho_factor(kernel + (noise + JITTER) * identity)
    inverse = cho_solve(factor, identity)
    dual = inverse @ targets
    slope = inverse - np.outer(dual, dual)  # twice the derivative by the kernel
    by_squared = slope * (-5 / 6 * smooth * (1 + r) * decay)  # dm / d(d^2) = -5/6 (1 + r) exp(-r)
    gradient = [
        *(linear * np.tensordot(inner, slope, 2)),
        *(lengths * np.tensordot(squared, by_squared, 2)),
        (slope * matern).sum(),
        noise * slope.trace(),
    ]
    from_centre = (log_parameters - centre) / PRIOR_WIDTH
    value = 0.5 * targets @ dual + np.log(factor[0].diagonal()).sum() + 0.5 * (from_centre**2).sum()
    return float(value), 0.5 * np.array(gradient) + from_centre / PRIOR_WIDTH
