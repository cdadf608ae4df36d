import math

import numpy as np
import pytest

from predictors.measuring.turns import time_ratio, turns_ms


def test_each_turn_warms_up_and_the_first_one_is_not_counted():
    calls = []

    def timer(name):
        def run(count):
            calls.append((name, count))
            return np.arange(count) + 10.0 * len(calls)

        return run

    found = turns_ms([timer("a"), timer("b")], 2, runs=3)
    assert calls == [("a", 4), ("b", 4)] * 3
    assert found.tolist() == [[[31, 32, 33], [41, 42, 43]], [[51, 52, 53], [61, 62, 63]]]


def test_the_ratio_is_that_of_turns_whatever_the_machine_does_in_them():
    busy = np.array([1.0, 1, 7, 1, 2, 1, 1, 9])[:, None]
    own, other = 3 * busy, 4 * busy
    found = time_ratio(own, other)
    assert (found.ratio, found.standard_error) == (pytest.approx(0.75), pytest.approx(0, abs=1e-12))
    assert found.verdict == "faster"
    assert time_ratio(other, own).verdict == "slower"


def test_the_standard_error_is_that_of_a_median():
    """Logarithms -2, -1, 0, 1, 2: the median deviation from their median is 1."""
    found = time_ratio(np.exp([[-2.0], [-1], [0], [1], [2]]), np.ones((5, 1)))
    assert found.ratio == 1
    assert found.standard_error == pytest.approx(math.sqrt(math.pi / 10) * 1.4826)
    assert found.verdict == "not distinguishable"


def test_the_standard_error_is_how_far_ratios_of_the_same_networks_lie_apart(numpy_generator):
    noise = np.exp(0.1 * numpy_generator.standard_normal((2, 2000, 40, 1)))
    found = [time_ratio(own, other) for own, other in zip(*noise)]
    spread = np.std(np.log([own.ratio for own in found]))
    assert np.mean([own.standard_error for own in found]) == pytest.approx(spread, rel=0.08)
    assert np.mean([own.verdict != "not distinguishable" for own in found]) < 0.02
