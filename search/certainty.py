"""How sure measured scores are: intervals, tests of two networks on the same examples, and what these can tell apart.

A network has a value for each example, of which its score is the mean: 1 or 0 for right or wrong, or any numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

# n networks, N examples

NORMAL_95 = 1.96  # standard errors on either side that hold 95 % of a normal distribution
LEVEL = 0.05  # of tests: the probability that any of those made together finds a difference where there is none
POWER = 0.8  # with which a difference is found that counts as one that can be told apart
RESAMPLES = 2000

Interval = tuple[float, float]


class Certainty(NamedTuple):
    """How sure the scores of some networks are that were judged by the same examples."""

    examples: int
    considered: int  # networks that the best was picked from
    intervals: list[Interval]  # [n] that hold the true scores with 95 % each
    as_good: list[bool]  # [n] whether the network cannot be told apart from the best, or is better
    detectable: float  # the difference of two scores that is found with 80 % power
    spread: float  # between the highest and the lowest score


def certainty(values: np.ndarray, best: int, considered: int) -> Certainty:
    """How sure the means of `values` [n, N] are, of which that of the network `best` is to be compared with.

    The best was picked from `considered` networks, at least these. A network is told apart from it where the paired
    test (`difference_p_value`), corrected by Holm for comparing all of these with the best, finds that it is worse, at
    the level of 5 %. Networks that are not among `values` count as told apart from the best in no case, so that the
    correction is rather too large.

    The difference that can be told apart is by the smallest of Holm's levels and by the variance of the differences
    of two networks' values on the same example, its mean over the networks.
    """
    scores = values.mean(axis=1)
    others = [index for index in range(len(values)) if index != best]
    p_values = holm([difference_p_value(values[best], values[index]) for index in others], considered - 1)
    worse = {index for index, p_value in zip(others, p_values) if p_value < LEVEL and scores[index] < scores[best]}
    variances = [np.var(values[best] - values[index]) for index in others]
    return Certainty(
        examples=values.shape[1],
        considered=considered,
        intervals=[mean_interval(row) for row in values],
        as_good=[index not in worse for index in range(len(values))],
        detectable=detectable_difference(np.mean(variances), values.shape[1], considered - 1) if others else 0.0,
        spread=float(np.ptp(scores)),
    )


def wilson(rate: float, count: int) -> Interval:
    """The interval that holds the probability of success with 95 %, for a `rate` of success in `count` trials.

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n) with z = 1.96; Wilson 1927.
    """
    z = NORMAL_95
    centre, scale = rate + z**2 / (2 * count), 1 + z**2 / count
    half = z * math.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2))
    return max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)


def mean_interval(values: np.ndarray) -> Interval:
    """The interval that holds the mean of what `values` [N] are drawn from with 95 %: Wilson's where they are 0 and 1,
    else the percentiles of the means of 2,000 bootstrap samples (Efron 1979)."""
    if _is_binary(values):
        return wilson(float(values.mean()), len(values))
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, batch=100, method="percentile", rng=np.random.default_rng(0)
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def difference_p_value(first: np.ndarray, second: np.ndarray) -> float:
    """The two-sided p-value of that two networks with values [N] for the same examples have the same true score:
    McNemar's (`mcnemar`) where the values are 0 and 1, else that of the paired t-test."""
    if _is_binary(first) and _is_binary(second):
        return mcnemar(int((first > second).sum()), int((first < second).sum()))
    if np.ptp(first - second) == 0:  # of a constant difference the t-test makes 0 / 0
        return float(first[0] == second[0])
    return float(stats.ttest_rel(first, second).pvalue)


def worse_p_values(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The one-sided p-values [n, m] of that each network with `values` [n, N] has no lower a true score than each of
    the `others` [m, N], on the same examples.

    Where all values are 0 and 1, those of the exact sign test, P(X <= k): X is binomial with probability 1/2 and the
    number of examples that one of the two networks alone is right about, of which k are the first network's. They also
    hold for the scores on a finite number of examples, of which these are drawn: without replacement the number in
    question varies less (Uhlmann 1966). Else those of the paired t-test.
    """
    count = values.shape[1]
    both = values @ others.T
    sums, other_sums = values.sum(axis=1)[:, None], others.sum(axis=1)
    if _is_binary(values) and _is_binary(others):
        return stats.binom.cdf(sums - both, sums + other_sums - 2 * both, 0.5)
    means = (sums - other_sums) / count
    squares = np.square(values).sum(axis=1)[:, None] + np.square(others).sum(axis=1) - 2 * both
    errors = np.sqrt(np.maximum(squares / count - means**2, 0) / (count - 1))
    with np.errstate(divide="ignore", invalid="ignore"):  # of a constant difference
        return np.nan_to_num(stats.t.cdf(means / errors, count - 1), nan=1.0)


def mcnemar(first_alone: int, second_alone: int) -> float:
    """The two-sided mid-p-value of McNemar's test, by how many examples the first network alone is right about, and the
    second alone.

    2 P(X < k) + P(X = k), where k is the lower of the two numbers and X binomial with probability 1/2 and their sum
    (Fagerland et al. 2013, "The McNemar test for binary matched-pairs data: mid-p and asymptotic are better than exact
    conditional").
    """
    few, total = min(first_alone, second_alone), first_alone + second_alone
    return float(2 * stats.binom.cdf(few, total, 0.5) - stats.binom.pmf(few, total, 0.5))


def holm(p_values: Sequence[float], tests: int | None = None) -> np.ndarray:
    """The p-values [n] of tests made together, corrected by Holm's method (1979): of those that are below 5 %, the
    probability that any is of a true hypothesis is at most 5 %.

    The i-th smallest of n is multiplied by n + 1 - i, and is at least what those before it became, and at most 1. With
    `tests`, more than n of them were made, and the others' p-values count as the largest.
    """
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values)
    factors = (len(p_values) if tests is None else max(tests, len(p_values))) - np.arange(len(p_values))
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(factors * p_values[order]), 1.0)
    return corrected


def detectable_difference(variance: float, examples: int, tests: int = 1) -> float:
    """The true difference of two scores on the same `examples` that a two-sided test finds with 80 % probability.

    (z(1 - 0.05 / 2 tests) + z(0.8)) sqrt(variance / examples), with quantiles z of the normal distribution and the
    variance of the difference of the two networks' values for an example; at the level that Bonferroni and Holm give
    the first of `tests`.
    """
    sigmas = stats.norm.isf(LEVEL / 2 / max(tests, 1)) + stats.norm.ppf(POWER)
    return float(sigmas * math.sqrt(variance / examples))


def decimals(interval: Interval) -> int:
    """The decimals of a score that mean something: up to the first digit of its standard error."""
    error = (interval[1] - interval[0]) / 2 / NORMAL_95
    return max(-math.floor(math.log10(error)), 0) if error > 0 else 6


def _is_binary(values: np.ndarray) -> bool:
    return bool(np.isin(values, (0, 1)).all())
