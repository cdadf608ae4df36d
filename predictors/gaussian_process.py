"""Gaussian-process regression on several views of an architecture at once.

    k(x, x') = 1 + l + w l^2 + noise,    l = sum over views a_i <p_i(x), p_i(x')>

`l` alone is Bayesian linear regression: additive effects of the choices, with a variance a_i for each view. Its square
adds the effects of pairs. The variances are those of greatest marginal likelihood (Rasmussen & Williams 2006, eq. 5.8
and 5.9) under weak priors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

# n samples, d dimensions of a view, h hyper-parameters

JITTER = 1e-8
PRIOR_WIDTH = 5.0  # standard deviation of the logarithms, about START
BOUND = 12.0
MOST_FOR_EVIDENCE = 300  # samples on which the evidence is maximised


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted process: targets are standardised with `mean` and `scale`, weights are in those units."""

    log_variances: np.ndarray  # [h]: one a view, then of pairs, then of the noise
    mean: float
    scale: float
    dual: np.ndarray  # [n]
    inverse: np.ndarray  # [n, n]

    @property
    def noise(self) -> float:
        """The standard deviation of the noise, in units of the targets."""
        return float(np.exp(self.log_variances[-1] / 2)) * self.scale

    def leave_one_out(self, targets: np.ndarray) -> np.ndarray:
        """The prediction [n] for each sample from all others (Rasmussen & Williams 2006, eq. 5.12)."""
        return targets - self.dual / self.inverse.diagonal() * self.scale


def fit(points: Sequence[np.ndarray], targets: np.ndarray, seed: int = 0) -> GaussianProcess:
    """The process for `targets` [n] at `points`, a list of views [n, d]."""
    standardised = (targets - targets.mean()) / (targets.std() or 1.0)
    grams = [p @ p.T for p in points]
    part = np.sort(np.random.default_rng(seed).permutation(len(targets))[:MOST_FOR_EVIDENCE])
    start = np.array([0.0] * len(grams) + [-2.0, -3.0])
    found = minimize(
        _negative_evidence,
        start,
        args=([gram[np.ix_(part, part)] for gram in grams], standardised[part], start),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-BOUND, BOUND)] * len(start),
        options={"maxiter": 60},
    )
    return condition(points, targets, found.x)


def condition(points: Sequence[np.ndarray], targets: np.ndarray, log_variances: np.ndarray) -> GaussianProcess:
    """The process with the given hyper-parameters."""
    mean, scale = float(targets.mean()), float(targets.std()) or 1.0
    additive = sum(np.exp(a) * (p @ p.T) for a, p in zip(log_variances, points))
    kernel = 1 + additive + np.exp(log_variances[-2]) * additive**2
    kernel += (np.exp(log_variances[-1]) + JITTER) * np.eye(len(targets))
    inverse = cho_solve(cho_factor(kernel), np.eye(len(targets)))
    return GaussianProcess(log_variances, mean, scale, inverse @ ((targets - mean) / scale), inverse)


def _negative_evidence(
    log_variances: np.ndarray, grams: Sequence[np.ndarray], targets: np.ndarray, centre: np.ndarray
) -> tuple[float, np.ndarray]:
    """Minus the log posterior density of the hyper-parameters, and its gradient [h]."""
    variances = np.exp(log_variances)
    identity = np.eye(len(targets))
    additive = sum(a * gram for a, gram in zip(variances, grams))
    factor = cho_factor(1 + additive + variances[-2] * additive**2 + (variances[-1] + JITTER) * identity)
    inverse = cho_solve(factor, identity)
    dual = inverse @ targets
    slope = inverse - np.outer(dual, dual)  # twice the derivative by the kernel
    by_additive = slope * (1 + 2 * variances[-2] * additive)
    gradient = [
        *(a * (by_additive * gram).sum() for a, gram in zip(variances, grams)),
        variances[-2] * (slope * additive**2).sum(),
        variances[-1] * slope.trace(),
    ]
    from_centre = (log_variances - centre) / PRIOR_WIDTH
    value = 0.5 * targets @ dual + np.log(factor[0].diagonal()).sum() + 0.5 * (from_centre**2).sum()
    return float(value), 0.5 * np.array(gradient) + from_centre / PRIOR_WIDTH
