"""Gaussian-process regression with the effects of an architecture's choices, and of pairs of them.

    k(x, x') = 1 + l + w l^2 + noise,    l = sum over views a_i <x T_i, x' T_i>

`x` [v] indicates the values of the choices and `T_i` [v, d] are the tables of `Embedding` and of the source devices.
`l` alone is Bayesian linear regression with a variance a_i for each view; its square adds the effects of pairs. The
variances are those of greatest marginal likelihood (Rasmussen & Williams 2006, eq. 5.8 and 5.9) under weak priors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from predictors.regression.left_out import left_out

# n architectures, m measurements, v values of all choices, d dimensions of a view, h hyper-parameters
# p measurements that a variance accounts for

JITTER = 1e-7  # of the kernel's mean diagonal
PRIOR_WIDTH = 5.0  # standard deviation of the logarithms of the variances, about their start
START_PAIRS, START_NOISE = -2.0, -3.0
LOWEST, HIGHEST = -12.0, 5.0
MOST_FOR_EVIDENCE = 300  # measurements on which the evidence is maximised
MOST_FOR_VARIANCE = 256  # measurements that a variance accounts for
ROWS = 4096  # architectures at a time


@dataclass(frozen=True)
class Pairwise:
    """The posterior, in units of the targets' standard deviation `scale` about their `mean`.

    With x centred, the mean is a + b x + x Q x: the kernel's square is a quadratic form for each measurement.
    """

    log_variances: np.ndarray  # [h]: of each view, then of pairs, then of the noise
    mean: float
    scale: float
    centre: np.ndarray  # [v]
    constant: float  # a
    linear: np.ndarray  # b [v]
    quadratic: np.ndarray  # Q [v, v]
    form: np.ndarray  # [v, v]: x form x is l(x, x)
    to_measured: np.ndarray  # [v, p]: x @ to_measured is l(x, measured), for the first p measurements
    root: np.ndarray  # [p, p]: the squared norm of k(x, measured) @ root is the variance that the measured explain
    left_out: np.ndarray  # [m]: the prediction for each measurement from all others
    left_out_variance: np.ndarray  # [m]: the variance that `predict` would have given that prediction

    def predict(self, indicators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means [n] and variances [n], noise included, for indicators [n, v]."""
        parts = [self._predict(indicators[start : start + ROWS]) for start in range(0, len(indicators), ROWS)]
        mean, variance = (np.concatenate(part) for part in zip(*parts)) if parts else np.zeros((2, 0))
        return mean.astype(float) * self.scale + self.mean, variance.astype(float) * self.scale**2

    def _predict(self, indicators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pairs, noise = (np.float32(value) for value in np.exp(self.log_variances[-2:]))
        centred = indicators - self.centre
        mean = self.constant + centred @ self.linear + np.einsum("nv,nv->n", centred @ self.quadratic, centred)
        own = np.einsum("nv,nv->n", centred @ self.form, centred)
        projected = _kernel(centred @ self.to_measured, pairs) @ self.root
        explained = np.einsum("nr,nr->n", projected, projected)
        return mean, np.maximum(_kernel(own, pairs) - explained, 0) + noise


def maximise_evidence(
    indicators: np.ndarray,
    targets: np.ndarray,
    centre: np.ndarray,
    tables: Sequence[np.ndarray],
    near: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """The logarithms [h] of the best variances for `targets` [m] at `indicators` [m, v].

    `centre` [v] is the mean indicator of random architectures. The search starts from `near` [h], if that is known.
    """
    grams = [_gram((indicators - centre) @ table) for table in tables]
    standardised = (targets - targets.mean()) / (targets.std() or 1.0)
    part = np.sort(np.random.default_rng(seed).permutation(len(targets))[:MOST_FOR_EVIDENCE])
    start = np.array([0.0] * len(grams) + [START_PAIRS, START_NOISE])
    found = minimize(
        _negative_evidence,
        start if near is None else near,
        args=([gram[np.ix_(part, part)] for gram in grams], standardised[part], start),
        jac=True,
        method="L-BFGS-B",
        bounds=[(LOWEST, HIGHEST)] * len(start),
        options={"maxiter": 40, "ftol": 1e-6},
    )
    return found.x


def condition(
    indicators: np.ndarray,
    targets: np.ndarray,
    centre: np.ndarray,
    tables: Sequence[np.ndarray],
    log_variances: np.ndarray,
    architectures: np.ndarray | None = None,
) -> Pairwise:
    """The posterior with the given hyper-parameters.

    `architectures` [m] numbers the architecture of each measurement, if some were measured more than once.
    """
    architectures = np.arange(len(targets)) if architectures is None else architectures
    mean, scale = float(targets.mean()), float(targets.std()) or 1.0
    pairs, noise = np.exp(log_variances[-2:])
    form = sum(np.exp(a) * _gram(table) for a, table in zip(log_variances, tables))
    centred = indicators - centre
    to_measured = form @ centred.T
    kernel = _kernel(centred @ to_measured, pairs)
    noise += JITTER * kernel.trace() / len(kernel)
    inverse = np.linalg.inv(kernel + noise * np.eye(len(kernel)))
    dual = inverse @ ((targets - mean) / scale)
    part = slice(MOST_FOR_VARIANCE)
    covariance = kernel[part, part]
    root = np.linalg.inv(np.linalg.cholesky(covariance + noise * np.eye(len(covariance)))).T
    explained = ((kernel[:, part] @ root) ** 2).sum(axis=1)
    variance = np.maximum(kernel.diagonal() - explained, 0) + noise
    variance[part] = _left_out(root @ root.T, (targets[part] - mean) / scale, architectures[part])[1]
    single = np.float32
    return Pairwise(
        log_variances,
        mean,
        scale,
        centre.astype(single),
        float(dual.sum()),
        (to_measured @ dual).astype(single),
        (pairs * (to_measured * dual) @ to_measured.T).astype(single),
        form.astype(single),
        to_measured[:, part].astype(single),
        root.astype(single),
        _left_out(inverse, (targets - mean) / scale, architectures)[0] * scale + mean,
        variance * scale**2,
    )


def _left_out(precision: np.ndarray, targets: np.ndarray, architectures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return left_out(
        targets, precision @ targets, precision.diagonal(), lambda rows: precision[np.ix_(rows, rows)], architectures
    )


def _kernel(additive: np.ndarray, pairs: float) -> np.ndarray:
    return 1 + additive * (1 + pairs * additive)


def _gram(rows: np.ndarray) -> np.ndarray:
    return rows @ rows.T


def _negative_evidence(
    log_variances: np.ndarray, grams: Sequence[np.ndarray], targets: np.ndarray, centre: np.ndarray
) -> tuple[float, np.ndarray]:
    """Minus the log posterior density of the hyper-parameters, and its gradient [h]."""
    variances = np.exp(log_variances)
    identity = np.eye(len(targets))
    additive = sum(a * gram for a, gram in zip(variances, grams))
    kernel = _kernel(additive, variances[-2])
    factor = cho_factor(kernel + (variances[-1] + JITTER * kernel.trace() / len(kernel)) * identity)
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
