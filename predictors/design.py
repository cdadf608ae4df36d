"""Which architectures to measure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from predictors.regression.embedding import Embedding

# n candidates, k architectures to predict, v values of all choices, r rank of the prior

NOISE = 0.02  # variance of a measurement's noise, as a part of the latencies'


def most_informative(
    embedding: Embedding,
    indicators: np.ndarray,
    prior: np.ndarray,
    count: int,
    everywhere: np.ndarray,
    first: Sequence[int] = (),
) -> list[int]:
    """Indices of the `count` candidates, from `indicators` [n, v], to measure; greedy V-optimal design.

    Each next candidate is the one after whose measurement the variance of the latency, averaged over the architectures
    with the indicators `everywhere` [k, v], is least, if the coefficients of an additive latency have the covariance
    `prior` [v, v]. The candidates `first` are taken in any case, before all others.
    """
    values, vectors = np.linalg.eigh(prior)
    kept = values > 1e-6 * values[-1]
    root = vectors[:, kept] * np.sqrt(values[kept])
    points = np.column_stack([(indicators - embedding.centre) @ root, np.ones(len(indicators))])
    everywhere = np.column_stack([(everywhere - embedding.centre) @ root, np.ones(len(everywhere))])
    second_moment = everywhere.T @ everywhere / len(everywhere)
    covariance = np.eye(points.shape[1])
    chosen: list[int] = []
    for number in range(count):
        spread = points @ covariance
        variance = np.einsum("nr,nr->n", spread, points) + NOISE
        gain = np.einsum("nr,nr->n", spread @ second_moment, spread) / variance
        gain[chosen] = -np.inf
        best = first[number] if number < len(first) else int(np.argmax(gain))
        chosen.append(best)
        covariance -= np.outer(spread[best], spread[best]) / variance[best]
    return chosen
