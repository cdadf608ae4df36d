"""How far devices agree on which architectures are fast, and whose predictor would do for whom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from predictors.latency import LatencyPredictor
from supernet.space import Arch

# d devices, n architectures, m measurements, r resamples

RESAMPLES = 1000
FASTEST = 0.1  # the part of the architectures that is chosen


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


class StandIn(NamedTuple):
    """How well the predictor of one device ranks architectures that were measured on another one.

    The loss is how much slower, in percent, the fastest tenth by that predictor is there than the fastest tenth by the
    device's own predictor, each measurement held out from it; below 0 the other's predictor chose better. Intervals
    hold 95 %, by bootstrap over what was measured. The loss is NaN where fewer than ten were measured.
    """

    device: str  # whose architectures are ranked
    predictor: str  # by whose predictor
    measured: int  # architectures
    spearman: float
    spearman_interval: tuple[float, float]
    own_spearman: float  # of the device's own predictor, held out
    loss_percent: float
    loss_interval: tuple[float, float]

    def would_do(self, most_percent: float) -> bool:
        """Whether the loss is at most `most_percent`, as far as 95 % say."""
        return self.loss_interval[1] <= most_percent


def compare(predictors: Mapping[str, LatencyPredictor], count: int = 1000, seed: int = 0) -> Comparison:
    """The predictions of all predictors for `count` random architectures.

    ValueError for fewer than two predictors, or if they are for different spaces.
    """
    _check(predictors)
    generator = np.random.default_rng(seed)
    space = next(iter(predictors.values())).space
    archs = [space.sample(generator) for _ in range(count)]
    latency_ms = np.array([predictor.cost(archs) for predictor in predictors.values()])
    return Comparison(list(predictors), archs, latency_ms, np.corrcoef(_ranks(latency_ms)))


def stand_ins(predictors: Mapping[str, LatencyPredictor], seed: int = 0) -> list[StandIn]:
    """For each device, how well the predictor of each other one would do in its place: the least loss first.

    A device is judged by its own measurements, which the others' predictors have not seen. Raises what `compare` does.
    """
    _check(predictors)
    found = []
    for name, own in predictors.items():
        measured_ms = own.latency_ms[: len(own.held_out_ms)]
        others = {other: predictors[other].cost(own.codes[: len(measured_ms)]) for other in predictors if other != name}
        generator = np.random.default_rng(seed)
        several = [
            _stand_in(name, other, measured_ms, own.held_out_ms, predicted, generator)
            for other, predicted in others.items()
        ]
        found += sorted(several, key=lambda each: (np.nan_to_num(each.loss_percent, nan=np.inf), -each.spearman))
    return found


def _check(predictors: Mapping[str, LatencyPredictor]) -> None:
    if len(predictors) < 2:
        raise ValueError(f"comparing needs two devices or more, and there are {len(predictors)}")
    (first_name, first), *others = predictors.items()
    for name, predictor in others:
        if predictor.space != first.space:
            raise ValueError(f"{first_name} and {name} are for different search spaces and cannot be compared")


def _stand_in(
    device: str,
    other: str,
    measured_ms: np.ndarray,
    own_ms: np.ndarray,
    predicted_ms: np.ndarray,
    generator: np.random.Generator,
) -> StandIn:
    count = len(measured_ms)
    samples = np.vstack([np.arange(count), generator.integers(count, size=(RESAMPLES, count))])  # the first is all
    measured, own, predicted = measured_ms[samples], own_ms[samples], predicted_ms[samples]
    spearman = _correlations(measured, predicted)
    loss = 100 * (_of_the_fastest(measured, predicted) / _of_the_fastest(measured, own) - 1)
    enough = count * FASTEST >= 1
    return StandIn(
        device,
        other,
        count,
        float(spearman[0]),
        _interval(spearman[1:]),
        float(_correlations(measured[:1], own[:1])[0]),
        float(loss[0]) if enough else np.nan,
        _interval(loss[1:]) if enough else (np.nan, np.nan),
    )


def _of_the_fastest(measured_ms: np.ndarray, by_ms: np.ndarray) -> np.ndarray:
    """Mean latency [r] of the fastest tenth by `by_ms` [r, m]."""
    chosen = np.argsort(by_ms, axis=1, kind="stable")[:, : max(int(by_ms.shape[1] * FASTEST), 1)]
    return np.take_along_axis(measured_ms, chosen, axis=1).mean(axis=1)


def _correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row [r]; NaN where a row is constant."""
    ranks = [rankdata(values, axis=1) for values in (first, second)]
    a, b = (each - each.mean(axis=1, keepdims=True) for each in ranks)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.nanquantile(values, (0.025, 0.975))
    return float(low), float(high)


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
