import numpy as np
import pytest
from scipy.stats import spearmanr

from predictors import LatencyPredictor
from predictors.comparison import compare, disagreements
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
