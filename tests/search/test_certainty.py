"""Intervals, paired tests and their correction, against brute force, hand-worked cases and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from search.certainty import (
    certainty,
    decimals,
    detectable_difference,
    difference_p_value,
    holm,
    mcnemar,
    mean_interval,
    wilson,
)


def hits(rates, count, generator, share=0.9):
    """Right or wrong [n, N] of networks of these accuracies, which are mostly right about the same examples."""
    common, own = generator.random(count), generator.random((len(rates), count))
    from_common = generator.random((len(rates), count)) < share
    return (np.where(from_common, common, own) < np.array(rates)[:, None]).astype(float)


def test_wilsons_interval():
    assert wilson(0.5, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert wilson(1.0, 10) == pytest.approx((0.72246, 1.0), abs=1e-5)
    for right, count in ((52, 61), (0, 7), (7531, 10000)):
        expected = stats.binomtest(right, count).proportion_ci(method="wilson")
        assert wilson(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-4)
        assert mean_interval(np.repeat([1.0, 0.0], [right, count - right])) == wilson(right / count, count)


def test_the_interval_of_a_mean_of_any_values_is_that_of_the_bootstrap(numpy_generator):
    values = numpy_generator.exponential(size=400)
    low, high = mean_interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)
    assert mean_interval(values) == (low, high)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (3, 3), (2, 7), (9, 1)])
def test_mcnemar_counts_all_ways_in_which_the_networks_may_differ(first, second):
    total = first + second
    few = min(first, second)
    heads = [sum(coins) for coins in itertools.product((0, 1), repeat=total)]
    one_sided = (sum(count < few for count in heads) + sum(count == few for count in heads) / 2) / len(heads)
    assert mcnemar(first, second) == pytest.approx(2 * one_sided, rel=1e-12)
    assert mcnemar(second, first) == mcnemar(first, second)


def test_a_paired_test_looks_at_the_examples_that_two_networks_differ_in():
    both = np.array([1.0] * 40 + [0.0] * 10)
    first, second = both.copy(), both.copy()
    first[-9:], second[0] = 1, 0
    assert difference_p_value(first, second) == mcnemar(10, 0) == pytest.approx(2**-10)
    assert difference_p_value(first, first) == 1.0
    values = np.arange(6.0)
    assert difference_p_value(values, values) == 1.0
    assert difference_p_value(values, values + 1) == 0.0
    other = np.array([1.0, 0.0, 4.0, 3.0, 5.0, 7.0])
    assert difference_p_value(values, other) == stats.ttest_rel(values, other).pvalue


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # 3, 1 (after 2), 2 and 4 times
    assert holm([0.01, 0.04], tests=10) == pytest.approx([0.1, 0.36])
    assert holm([0.4, 0.6, 0.5]) == pytest.approx([1.0, 1.0, 1.0])
    assert not len(holm([]))


def test_holms_correction_by_the_definition(numpy_generator):
    """Rejected at a level is what Holm's steps reject: from the smallest on, until one is above level / those left."""
    for p_values in numpy_generator.beta(0.3, 3, size=(20, 6)):
        corrected = holm(p_values)
        for level in (0.01, 0.05, 0.2):
            rejected = set()
            for left, index in zip(range(6, 0, -1), np.argsort(p_values)):
                if p_values[index] > level / left:
                    break
                rejected.add(int(index))
            assert set(np.flatnonzero(corrected <= level).tolist()) == rejected


def test_a_difference_that_can_be_told_apart_is_found_with_80_percent_power(numpy_generator):
    examples, apart, either = 600, 0.05, 0.11  # either network is right alone about 8 or 3 % of the examples
    variance = either - apart**2
    assert detectable_difference(variance, examples) == pytest.approx(2.8016 * math.sqrt(variance / examples), rel=1e-4)
    needed = round(examples * (detectable_difference(variance, examples) / apart) ** 2)
    draws = numpy_generator.multinomial(needed, [0.08, 0.03, 1 - either], size=2000)
    found = np.mean([mcnemar(first, second) < 0.05 for first, second, _ in draws])
    assert found == pytest.approx(0.8, abs=0.03)
    assert detectable_difference(variance, examples, 50) > detectable_difference(variance, examples, 5)


def test_what_cannot_be_told_apart_from_the_best_is_marked(numpy_generator):
    values = hits([0.9, 0.895, 0.6], 400, numpy_generator)
    found = certainty(values, 0, considered=20)
    assert found.as_good == [True, True, False]
    assert found.intervals == [wilson(score, 400) for score in values.mean(axis=1)]
    assert (found.examples, found.considered, found.spread) == (400, 20, np.ptp(values.mean(axis=1)))
    variance = np.mean([np.var(values[0] - values[1]), np.var(values[0] - values[2])])
    assert found.detectable == detectable_difference(variance, 400, 19) < found.spread


def test_looking_at_more_networks_makes_fewer_differences_certain(numpy_generator):
    values = hits([0.9, 0.85], 400, numpy_generator)
    assert certainty(values, 0, considered=2).as_good == [True, False]
    assert certainty(values, 0, considered=1000).as_good == [True, True]


def test_one_network_is_as_good_as_itself():
    found = certainty(np.ones((1, 30)), 0, considered=1)
    assert (found.as_good, found.spread, found.detectable) == ([True], 0.0, 0.0)


@pytest.mark.parametrize("gap", [0.0, 0.02, 0.1])
def test_the_truly_best_is_marked_however_many_were_looked_at(numpy_generator, gap):
    rates = 0.9 - gap * np.arange(12) / 12
    missed = 0
    for _ in range(200):
        values = hits(rates, 150, numpy_generator, share=0.7)
        missed += not certainty(values, int(values.mean(axis=1).argmax()), considered=12).as_good[0]
    assert missed <= 10


def test_digits_by_the_width_of_the_interval():
    assert decimals(wilson(0.85, 61)) == 2  # give or take 0.09
    assert decimals(wilson(0.75, 10000)) == 3  # give or take 0.008
    assert decimals((0.0, 100.0)) == 0
    assert decimals((0.5, 0.5)) == 6
