"""Bayesian linear regression on the values of an architecture's choices, averaged over hyper-parameters.

    y = b + sum over choices c of w[c, value of c] + noise,    w ~ N(0, sum over components k of s_k C_k)

Every combination of the variances s_k and of the noise on a grid is one model; their predictions are averaged with
their evidence as weights, which ten measurements bear better than a choice among them. See `components` in
`transfer.py` for the matrices C_k that other devices give; without any, they are the identity.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# n measurements, v values of all choices, r rank of a prior

NOISES = (0.0003, 0.003, 0.01, 0.03, 0.1, 0.3)  # variances of the noise, as parts of that of the measurements


@dataclass(frozen=True)
class Additive:
    """The posterior: a mean and a covariance of the coefficients, the last of which is the constant."""

    coefficients: np.ndarray  # [v + 1]
    covariance: np.ndarray  # [v + 1, v + 1]
    noise: float  # variance
    left_out: np.ndarray  # [n]: the prediction for each measurement from all others
    left_out_variance: np.ndarray  # [n]

    def predict(self, indicators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means [n] and variances [n], noise included, for indicators [n, v]."""
        weights, constant = self.coefficients[:-1].astype(np.float32), self.coefficients[-1]
        values, vectors = np.linalg.eigh(self.covariance)
        kept = values > 1e-9 * values[-1]
        root = (vectors[:, kept] * np.sqrt(values[kept])).astype(np.float32)
        spread = indicators @ root[:-1] + root[-1]
        variance = np.einsum("nr,nr->n", spread, spread)
        return (indicators @ weights).astype(float) + constant, variance.astype(float) + self.noise


def fit(
    indicators: np.ndarray,
    targets: np.ndarray,
    centre: np.ndarray,
    components: Sequence[np.ndarray],
    scales: Sequence[Sequence[float]],
) -> Additive:
    """The posterior from `targets` [n] at `indicators` [n, v].

    `centre` [v] is the mean indicator of random architectures; `components` are the covariances C_k [v, v] of the
    prior in units of the targets' variance, and `scales` the values that each s_k takes.
    """
    mean, scale = float(targets.mean()), float(targets.std()) or 1.0
    standardised = (targets - mean) / scale
    centred = indicators - centre
    models = [
        model
        for factors in itertools.product(*scales)
        for model in _models(centred, standardised, sum(s * c for s, c in zip(factors, components)))
    ]
    evidence = np.array([model.evidence for model in models])
    weights = np.exp(evidence - evidence.max())
    weights /= weights.sum()
    coefficients = sum(w * m.coefficients for w, m in zip(weights, models))
    covariance = sum(w * m.covariance() for w, m in zip(weights, models) if w > 1e-4)
    deviations = np.array([np.sqrt(w) * (m.coefficients - coefficients) for w, m in zip(weights, models)])
    covariance = covariance + deviations.T @ deviations
    # from centred indicators to plain ones
    shift = np.eye(len(centre) + 1)
    shift[-1, :-1] = -centre
    coefficients, covariance = shift @ coefficients, shift @ covariance @ shift.T
    coefficients = coefficients * scale
    coefficients[-1] += mean
    return Additive(
        coefficients,
        covariance * scale**2,
        float(weights @ [m.noise for m in models]) * scale**2,
        sum(w * m.left_out for w, m in zip(weights, models)) * scale + mean,
        sum(w * m.left_out_variance for w, m in zip(weights, models)) * scale**2,
    )


@dataclass(frozen=True)
class _Model:
    """One combination of hyper-parameters; `root` [v + 1, r] spans the prior, `inverse` [r] its posterior there."""

    evidence: float
    coefficients: np.ndarray  # [v + 1]
    root: np.ndarray
    inverse: np.ndarray
    noise: float
    left_out: np.ndarray
    left_out_variance: np.ndarray

    def covariance(self) -> np.ndarray:
        return (self.root * self.inverse) @ self.root.T


def _models(centred: np.ndarray, targets: np.ndarray, prior: np.ndarray) -> list[_Model]:
    """The models of all noises with the prior covariance `prior` [v, v] of the coefficients and 1 of the constant."""
    values, vectors = np.linalg.eigh(prior)
    kept = values > 1e-9 * values[-1]
    root = np.zeros((len(prior) + 1, kept.sum() + 1))
    root[:-1, :-1] = vectors[:, kept] * np.sqrt(values[kept])
    root[-1, -1] = 1
    points = np.column_stack([centred @ root[:-1, :-1], np.ones(len(centred))])
    eigenvalues, rotation = np.linalg.eigh(points.T @ points)
    eigenvalues = np.maximum(eigenvalues, 0)
    root, points = root @ rotation, points @ rotation
    projected = points.T @ targets
    models = []
    for noise in NOISES:
        inverse = noise / (eigenvalues + noise)  # posterior variances
        weights = projected / (eigenvalues + noise)
        residual = targets - points @ weights
        log_determinant = np.log1p(eigenvalues / noise).sum() + len(targets) * np.log(noise)
        leverage = (points**2) @ (1 / (eigenvalues + noise))
        models.append(
            _Model(
                evidence=-0.5 * (targets @ residual / noise + log_determinant),
                coefficients=root @ weights,
                root=root,
                inverse=inverse,
                noise=noise,
                left_out=targets - residual / (1 - leverage),
                left_out_variance=noise / (1 - leverage),
            )
        )
    return models
