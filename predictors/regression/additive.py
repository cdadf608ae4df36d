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
from scipy.linalg import block_diag

from predictors.regression.left_out import left_out

# n measurements, v values of all choices, r rank of a prior among the measurements

NOISES = (0.0003, 0.003, 0.01, 0.03, 0.1, 0.3)  # variances of the noise, as parts of the measurements' variance


@dataclass(frozen=True)
class Additive:
    """The posterior: a mean and a covariance of the coefficients, the last of which is the constant."""

    coefficients: np.ndarray  # [v + 1]
    covariance: np.ndarray  # [v + 1, v + 1]
    noise: float  # variance
    left_out: np.ndarray  # [n]: the prediction for each measurement from all other architectures'
    left_out_variance: np.ndarray  # [n]: the variance of that prediction, noise included

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
    architectures: np.ndarray | None = None,
) -> Additive:
    """The posterior from `targets` [n] at `indicators` [n, v].

    `centre` [v] is the mean indicator of random architectures; `components` are the covariances C_k [v, v] of the
    prior in units of the targets' variance, and `scales` the values that each s_k takes. `architectures` [n] numbers
    the architecture of each measurement, if some were measured more than once.
    """
    mean, scale = float(targets.mean()), float(targets.std()) or 1.0
    standardised = (targets - mean) / scale
    points = np.column_stack([indicators - centre, np.ones(len(indicators))])
    architectures = np.arange(len(targets)) if architectures is None else architectures
    models = [
        model
        for factors in itertools.product(*scales)
        for model in _models(points, standardised, sum(s * c for s, c in zip(factors, components)), architectures)
    ]
    evidence = np.array([model.evidence for model in models])
    weights = np.exp(evidence - evidence.max())
    weights /= weights.sum()
    coefficients = weights @ [m.coefficients for m in models]
    covariance = sum(w * m.covariance() for w, m in zip(weights, models) if w > 1e-4)
    deviations = np.array([np.sqrt(w) * (m.coefficients - coefficients) for w, m in zip(weights, models)])
    covariance = covariance + deviations.T @ deviations
    means = np.array([m.left_out for m in models])
    left_out_mean = weights @ means
    left_out_variance = weights @ (np.array([m.left_out_variance for m in models]) + (means - left_out_mean) ** 2)
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
        left_out_mean * scale + mean,
        left_out_variance * scale**2,
    )


@dataclass(frozen=True)
class _Model:
    """One combination of hyper-parameters. The measurements take `directions` times `inverse` off the prior."""

    evidence: float
    coefficients: np.ndarray  # [v + 1]
    prior: np.ndarray  # [v + 1, v + 1]: covariance of the coefficients
    directions: np.ndarray  # [v + 1, r]
    inverse: np.ndarray  # [r]
    noise: float
    left_out: np.ndarray
    left_out_variance: np.ndarray

    def covariance(self) -> np.ndarray:
        return self.prior - (self.directions * self.inverse) @ self.directions.T


def _models(points: np.ndarray, targets: np.ndarray, prior: np.ndarray, architectures: np.ndarray) -> list[_Model]:
    """The models of all noises with the prior covariance `prior` [v, v] of the coefficients and 1 of the constant.

    The prior covariance of the measurements is U diag(eigenvalues) U', with which each noise costs next to nothing.
    """
    prior = block_diag(prior, 1.0)
    to_measured = prior @ points.T  # [v + 1, n]
    if len(points) <= len(prior):
        eigenvalues, vectors = np.linalg.eigh(points @ to_measured)
        kept = eigenvalues > 1e-9 * eigenvalues[-1]
        eigenvalues, vectors = eigenvalues[kept], vectors[:, kept]
    else:  # the same from the smaller matrix of the two
        values, root = np.linalg.eigh(prior)
        kept = values > 1e-9 * values[-1]
        projected = points @ (root[:, kept] * np.sqrt(values[kept]))
        eigenvalues, rotation = np.linalg.eigh(projected.T @ projected)
        kept = eigenvalues > 1e-9 * eigenvalues[-1]
        eigenvalues = eigenvalues[kept]
        vectors = projected @ rotation[:, kept] / np.sqrt(eigenvalues)
    directions, along = to_measured @ vectors, vectors.T @ targets
    models = []
    for noise in NOISES:
        inverse = 1 / (eigenvalues + noise)
        shrinkage = eigenvalues * inverse
        residual = targets - vectors @ (shrinkage * along)
        log_determinant = np.log1p(eigenvalues / noise).sum() + len(targets) * np.log(noise)
        mean, variance = left_out(
            targets,
            residual / noise,
            (1 - vectors**2 @ shrinkage) / noise,
            lambda rows: (np.eye(len(rows)) - (vectors[rows] * shrinkage) @ vectors[rows].T) / noise,  # noqa: B023
            architectures,
        )
        models.append(
            _Model(
                evidence=-0.5 * (targets @ residual / noise + log_determinant),
                coefficients=directions @ (inverse * along),
                prior=prior,
                directions=directions,
                inverse=inverse,
                noise=noise,
                left_out=mean,
                left_out_variance=variance,
            )
        )
    return models
