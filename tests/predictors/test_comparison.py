import numpy as np
import pytest
from scipy.stats import spearmanr

from predictors import LatencyPredictor
from predictors.comparison import compare, disagreements, stand_ins
from supernet.space import SearchSpace

SPACE = SearchSpace({"depth": (1, 2, 3, 4, 5, 6), "width": (1, 2, 3, 4, 5, 6)})
ARCHS = SPACE.decode(np.array([[d, w] for d in range(6) for w in range(6)]))


def predictor(latency):
    return LatencyPredictor.fit(SPACE, ARCHS, [latency(arch) for arch in ARCHS])


def test_correlations_are_those_of_the_predictions():
    deep, wide = (
        predictor(lambda a: 1 + 4 * a["depth"] + a["width"]),
        predictor(lambda a: 1 + a["depth"] + 4 * a["width"]),
    )
    comparison = compare({"deep": deep, "wide": wide, "deep too": deep}, count=200)
    expected = spearmanr(deep.cost(comparison.archs), wide.cost(comparison.archs)).statistic
    assert comparison.spearman[0, 1] == pytest.approx(expected)
    assert comparison.spearman[0, 2] == pytest.approx(1)
    assert comparison.latency_ms.shape == (3, 200)


def test_devices_disagree_most_on_the_shallow_and_wide_and_the_deep_and_narrow():
    deep, wide = (
        predictor(lambda a: 1 + 4 * a["depth"] + a["width"]),
        predictor(lambda a: 1 + a["depth"] + 4 * a["width"]),
    )
    first, second = disagreements(compare({"deep": deep, "wide": wide}, count=500), 0, 1, 2)
    assert dict(first.arch) == {"depth": 1, "width": 6}
    assert dict(second.arch) == {"depth": 6, "width": 1}
    assert first.ranks[0] < 0.3 < 0.7 < first.ranks[1]
    assert first.latency_ms == pytest.approx((11, 26), rel=0.1)


def test_comparing_needs_two_devices_of_one_space():
    one = predictor(lambda a: 1.0 + a["depth"])
    other_space = SearchSpace({"depth": tuple(range(1, 20))})
    archs = other_space.decode(np.arange(19)[:, None])
    other = LatencyPredictor.fit(other_space, archs, [arch["depth"] for arch in archs])
    with pytest.raises(ValueError, match="needs two devices or more, and there are 1"):
        compare({"one": one})
    with pytest.raises(ValueError, match="one and other are for different search spaces"):
        compare({"one": one, "other": other})


class Known:
    """A device whose 40 architectures take their number in milliseconds, and a predictor of given predictions."""

    def __init__(self, cost, latency_ms=None, held_out_ms=None):
        self.space = SPACE
        self.codes = np.arange(40)
        self.latency_ms = np.arange(1.0, 41.0) if latency_ms is None else latency_ms
        self.held_out_ms = self.latency_ms if held_out_ms is None else held_out_ms
        self._cost = cost

    def cost(self, archs):
        return self._cost(np.arange(len(archs)))


def test_the_loss_is_that_of_the_fastest_tenth_as_measured():
    """Of 40 architectures of 1 to 40 ms the fastest four take 2.5 ms; those of 2, 4, 6 and 8 ms take twice as long."""
    right = Known(lambda index: index)
    even_first = Known(lambda index: np.where(index % 2 == 1, index, index + 100.0))
    slow_first = Known(lambda index: -index)
    found = {each.predictor: each for each in stand_ins({"a": right, "b": even_first, "c": slow_first})[:2]}
    assert found["b"].loss_percent == pytest.approx(100)
    assert found["c"].loss_percent == pytest.approx(100 * (38.5 / 2.5 - 1))
    assert found["b"].spearman == pytest.approx(spearmanr(even_first.cost(right.codes), right.latency_ms).statistic)
    assert (found["c"].spearman, found["c"].own_spearman) == (-1, 1)
    assert [each.predictor for each in stand_ins({"a": right, "c": slow_first, "b": even_first})[:2]] == ["b", "c"]


def test_a_predictor_that_ranks_as_a_device_does_would_do_for_it():
    noise = np.random.default_rng(0).normal(1, 0.3, (2, 40))
    as_good = {
        "a": Known(lambda index: 3 * noise[0] * (index + 1), held_out_ms=noise[1] * np.arange(1.0, 41.0)),
        "b": Known(lambda index: 3 * noise[0] * (index + 1)),
    }
    first = stand_ins(as_good)[0]
    assert (first.device, first.predictor, first.measured) == ("a", "b", 40)
    low, high = first.spearman_interval
    assert low < first.spearman < high
    assert 0.02 < high - low < 0.4
    low, high = first.loss_interval
    assert low < 0 < high
    assert first.would_do(high)
    assert not first.would_do(high - 1)


def test_few_measurements_tell_no_loss():
    few = {name: predictor(lambda a, k=k: 1 + k * a["depth"] + a["width"]) for k, name in ((1, "x"), (2, "y"))}
    for each in few.values():
        each.codes, each.latency_ms = each.codes[:9], each.latency_ms[:9]
        each.held_out = each.held_out._replace(latency_ms=each.held_out.latency_ms[:9])
    first = stand_ins(few)[0]
    assert np.isnan(first.loss_percent)
    assert not first.would_do(100)
    assert 0 < first.spearman < 1
