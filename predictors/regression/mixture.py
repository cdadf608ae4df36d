"""Predictions of several regressors, averaged by how well they predict, together, what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from predictors.regression.additive import Additive
from predictors.regression.pairwise import Pairwise
from predictors.regression.regressors import MOST_PAIRWISE, Measured, Regressor, condition, tuned

# n architectures, m measurements, k regressors

LEAST_WEIGHT = 0.01  # a regressor of less is not worth its time
PRIOR = 3.0  # measurements that speak for all regressors of a kind alike, beside those that were made
WITHOUT_SOURCES = 0.45  # the part of these for regressors without sources beside others with one source; it falls ...
LEAST_WITHOUT_SOURCES = 0.05  # ... with their number to this
ITERATIONS = 100
FASTEST = 0.1  # of the fastest measurement: no architecture is predicted to be faster


@dataclass(frozen=True)
class Mixture:
    """The average of the `models` of some regressors, by `weights` [k] that sum to 1.

    Medians m_k in milliseconds and standard errors s_k give the mean m = sum w_k m_k and the variance
    sum w_k (s_k^2 + (m_k - m)^2): where scales disagree, as they do beyond what was measured, the error grows.
    """

    regressors: Sequence[Regressor]
    models: Sequence[Additive | Pairwise]
    weights: np.ndarray
    least_ms: float  # positive, for models in milliseconds that extrapolate

    def predict(self, indicators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Milliseconds [n] and standard errors [n], the noise of a measurement included, for indicators [n, v]."""
        single = indicators.astype(np.float32)
        return self._average([model.predict(single) for model in self.models])

    def left_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Milliseconds and standard errors, as `predict` gives them, of each of the first 1,000 measurements, predicted
        from the measurements of all other architectures."""
        part = slice(MOST_PAIRWISE)
        return self._average([(model.left_out[part], model.left_out_variance[part]) for model in self.models])

    def _average(self, predictions: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        means, variances = [], []
        for regressor, (mean, variance) in zip(self.regressors, predictions):
            mean = np.maximum(np.exp(mean) if regressor.logarithmic else mean, self.least_ms)
            means.append(mean)
            variances.append(variance * mean**2 if regressor.logarithmic else variance)
        average = self.weights @ means
        return average, np.sqrt(self.weights @ (np.array(variances) + (np.array(means) - average) ** 2))


def average(measured: Measured, regressors: Sequence[Regressor], weights: np.ndarray | None = None) -> Mixture:
    """The mixture of `regressors` by `weights` [k], or else by the weights that `stacked` gives."""
    models = [condition(measured, regressor) for regressor in regressors]
    if weights is None:
        density = np.array([_log_density(measured, *pair) for pair in zip(regressors, models)])
        weights = stacked(density, _prior(regressors))
        kept = np.flatnonzero(weights >= LEAST_WEIGHT)
        regressors, models, weights = [regressors[i] for i in kept], [models[i] for i in kept], weights[kept]
    return Mixture(regressors, models, weights / weights.sum(), FASTEST * measured.latency_ms.min())


def fit(measured: Measured, regressors: Sequence[Regressor]) -> Mixture:
    """The mixture of the regressors, once their hyper-parameters suit the measurements."""
    return average(measured, tuned(measured, regressors))


def _prior(regressors: Sequence[Regressor]) -> np.ndarray:
    """How many measurements speak for each regressor [k] before any is made: a handful cannot tell which of them is
    best, and sources help more often than not, the more of them the surer."""
    transfers = np.array([len(regressor.sources) > 0 for regressor in regressors])
    if transfers.all() or not transfers.any():
        return np.full(len(regressors), PRIOR / len(regressors))
    without = max(WITHOUT_SOURCES / max(len(regressor.sources) for regressor in regressors), LEAST_WITHOUT_SOURCES)
    shares = np.where(transfers, 1 - without, without)
    return PRIOR * shares / np.where(transfers, transfers.sum(), (~transfers).sum())


def stacked(log_density: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """The weights [k], of sum 1, whose mixture gives left-out measurements the greatest density.

    `log_density` [k, m] is log p_k(y_i | measurements of other architectures), in milliseconds. The weights maximise

        sum_i log sum_k w_k p_k(y_i)  +  sum_k prior_k log w_k,

    stacking of predictive distributions (Yao et al. 2018, section 3.1) with a Dirichlet `prior` [k], without which a
    few measurements drop a regressor by chance and what it disagrees in is missing from the standard error.
    """
    measurements = log_density.shape[1]
    weights = prior / prior.sum()
    for _ in range(ITERATIONS):  # expectation maximisation
        responsible = softmax(np.log(weights)[:, None] + log_density, axis=0)
        weights = (responsible.sum(axis=1) + prior) / (measurements + prior.sum())
    return weights


def _log_density(measured: Measured, regressor: Regressor, model: Additive | Pairwise) -> np.ndarray:
    """Logarithms of the densities of the first 1,000 latencies in milliseconds, each given other architectures'."""
    part = measured.part(slice(MOST_PAIRWISE))
    mean, variance = model.left_out[:MOST_PAIRWISE], model.left_out_variance[:MOST_PAIRWISE]
    density = -0.5 * ((part.targets(regressor) - mean) ** 2 / variance + np.log(2 * np.pi * variance))
    return density - np.log(part.latency_ms) if regressor.logarithmic else density  # d log y = dy / y
