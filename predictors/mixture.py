"""A prediction in logarithms and one in milliseconds, averaged by how well each predicts what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from predictors.additive import Additive
from predictors.methods import Measured, Method, condition, tuned
from predictors.pairwise import Pairwise

# n architectures, m measurements, k methods

LEAST_WEIGHT = 0.01  # a method of less is not worth its time
FASTEST = 0.1  # of the fastest measurement: no architecture is predicted to be faster


@dataclass(frozen=True)
class Mixture:
    """The average of the `models` of some methods, by `weights` [k] that sum to 1.

    Medians m_k in milliseconds and standard errors s_k give the mean m = sum w_k m_k and the variance
    sum w_k (s_k^2 + (m_k - m)^2): where scales disagree, as they do beyond what was measured, the error grows.
    """

    methods: Sequence[Method]
    models: Sequence[Additive | Pairwise]
    weights: np.ndarray
    least_ms: float  # positive, for models in milliseconds that extrapolate

    def predict(self, indicators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Milliseconds [n] and standard errors [n], the noise of a measurement included, for indicators [n, v]."""
        single = indicators.astype(np.float32)
        return self._average([model.predict(single) for model in self.models])

    def left_out(self) -> tuple[np.ndarray, np.ndarray]:
        """The same for each measurement from those of all other architectures; of the first 1,000 alone where the
        effects of pairs are known from no more."""
        return self._average([(model.left_out, model.left_out_variance) for model in self.models])

    def _average(self, predictions: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        means, variances = [], []
        for method, (mean, variance) in zip(self.methods, predictions):
            mean = np.maximum(np.exp(mean) if method.logarithmic else mean, self.least_ms)
            means.append(mean)
            variances.append(variance * mean**2 if method.logarithmic else variance)
        average = self.weights @ means
        return average, np.sqrt(self.weights @ (np.array(variances) + (np.array(means) - average) ** 2))


def average(measured: Measured, methods: Sequence[Method], weights: np.ndarray | None = None) -> Mixture:
    """The mixture of `methods` by `weights` [k], or else by how well they predict what is left out.

    w_k is then proportional to the product over all measurements y of p_k(y | those of other architectures), all as
    densities of milliseconds: pseudo-Bayesian model averaging (Geisser & Eddy 1979; Yao et al. 2018, section 3.4).
    """
    models = [condition(measured, method) for method in methods]
    if weights is None:
        weights = softmax([_log_density(measured, *pair).sum() for pair in zip(methods, models)])
        kept = np.flatnonzero(weights >= LEAST_WEIGHT)
        methods, models, weights = [methods[i] for i in kept], [models[i] for i in kept], weights[kept]
    return Mixture(methods, models, weights / weights.sum(), FASTEST * measured.latency_ms.min())


def best(measured: Measured, alternatives: Sequence[Sequence[Method]]) -> Mixture:
    """Of the mixtures of each of the alternatives, the one that predicts left-out measurements with the least mean
    absolute relative error."""
    mixtures = [average(measured, methods) for methods in alternatives]
    return min(mixtures, key=lambda mixture: relative_error(measured.latency_ms, mixture.left_out()[0]))


def fit(measured: Measured, alternatives: Sequence[Sequence[Method]]) -> Mixture:
    """The best mixture of the alternatives, once their hyper-parameters suit the measurements."""
    return best(measured, [tuned(measured, methods) for methods in alternatives])


def relative_error(latency_ms: np.ndarray, predicted_ms: np.ndarray) -> float:
    """Mean absolute relative error of predictions, of the first latencies if there are fewer predictions."""
    return float(np.abs(predicted_ms / latency_ms[: len(predicted_ms)] - 1).mean())


def _log_density(measured: Measured, method: Method, model: Additive | Pairwise) -> np.ndarray:
    """Logarithms [m] of the densities of the latencies in milliseconds, each given those of other architectures."""
    part = measured.part(slice(len(model.left_out)))
    variance = model.left_out_variance
    density = -0.5 * ((part.targets(method) - model.left_out) ** 2 / variance + np.log(2 * np.pi * variance))
    return density - np.log(part.latency_ms) if method.logarithmic else density  # d log y = dy / y
