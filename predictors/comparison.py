"""How far devices agree on which architectures are fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from predictors.latency import LatencyPredictor
from supernet.space import Arch

# d devices, n architectures


class Comparison(NamedTuple):
    """Latencies of the same random architectures on several devices, and how their ranks correlate."""

    devices: list[str]
    archs: list[Arch]
    latency_ms: np.ndarray  # [d, n]
    spearman: np.ndarray  # [d, d]


class Disagreement(NamedTuple):
    """An architecture that one of two devices ranks higher than the other; ranks from 0, fastest, to 1."""

    arch: Arch
    ranks: tuple[float, float]
    latency_ms: tuple[float, float]


def compare(predictors: Mapping[str, LatencyPredictor], count: int = 1000, seed: int = 0) -> Comparison:
    """The predictions of all predictors for `count` random architectures.

    ValueError for fewer than two predictors, or if they are for different spaces.
    """
    if len(predictors) < 2:
        raise ValueError(f"comparing needs two devices or more, and there are {len(predictors)}")
    (first_name, first), *others = predictors.items()
    for name, predictor in others:
        if predictor.space != first.space:
            raise ValueError(f"{first_name} and {name} are for different search spaces and cannot be compared")
    generator = np.random.default_rng(seed)
    archs = [first.space.sample(generator) for _ in range(count)]
    latency_ms = np.array([predictor.cost(archs) for predictor in predictors.values()])
    return Comparison(list(predictors), archs, latency_ms, np.corrcoef(_ranks(latency_ms)))


def disagreements(comparison: Comparison, a: int, b: int, count: int) -> list[Disagreement]:
    """The `count` architectures whose ranks on devices number `a` and `b` differ most, both ways in turn.

    The first is the one that `b` ranks slower than `a` does by most, the second the other way round.
    """
    ranks = _ranks(comparison.latency_ms[[a, b]]) / (len(comparison.archs) - 1)
    order = np.argsort(ranks[0] - ranks[1])
    alternating = [i for pair in zip(order, order[::-1]) for i in pair][:count]
    return [
        Disagreement(
            comparison.archs[i],
            (float(ranks[0, i]), float(ranks[1, i])),
            (float(comparison.latency_ms[a, i]), float(comparison.latency_ms[b, i])),
        )
        for i in alternating
    ]


def _ranks(latency_ms: np.ndarray) -> np.ndarray:
    return rankdata(latency_ms, axis=1) - 1
