import numpy as np
import pytest
from scipy import stats

from search.report.importance import importances


def drawn(effects, n=400, noise=1.0, seed=0):
    """Codes [n, c], and scores of which each choice's effects are a part."""
    generator = np.random.default_rng(seed)
    codes = np.stack([generator.integers(len(own), size=n) for own in effects], axis=1)
    score = sum(np.array(own)[codes[:, index]] for index, own in enumerate(effects))
    return codes, score + noise * generator.normal(size=n)


def test_one_choice_alone_is_judged_as_by_the_analysis_of_variance():
    codes, score = drawn([(0.0, 0.3, 0.5)], n=90)
    (found,) = importances({"width": (8, 16, 24)}, codes, score)
    f, p = stats.f_oneway(*(score[codes[:, 0] == code] for code in range(3)))
    assert found.share == pytest.approx(2 * (f - 1) / (2 * (f - 1) + 90))
    assert (found.low > 0) == (p < 0.025)  # of an interval whose lower end has 2.5 % below it
    for end, probability in ((found.low, 0.975), (found.high, 0.025)):
        if end:
            assert stats.ncf.cdf(f, 2, 87, 90 * end / (1 - end)) == pytest.approx(probability, abs=1e-6)


def test_intervals_hold_the_true_part_as_often_as_they_say():
    effects, names = [(0.0, 0.6), (0.0, 0.0)], {"a": (1, 2), "b": (1, 2)}
    true = 0.3**2 / (0.3**2 + 1)  # the variance of two equally frequent values 0.6 apart, beside that of the noise
    found = [{own.choice: own for own in importances(names, *drawn(effects, 200, 1.0, seed))} for seed in range(100)]
    assert sum(own["a"].low <= true <= own["a"].high for own in found) >= 88
    assert sum(own["b"].low == 0 for own in found) >= 92
    assert abs(np.mean([own["b"].share for own in found])) < 0.005


def test_choices_that_say_the_same_or_too_little_are_left_out():
    codes, score = drawn([(0.0, 1.0), (0.0, 0.1)])
    twice = np.column_stack([codes, codes[:, 0], np.zeros(len(codes), int)])
    names = dict.fromkeys(("a", "b", "as a", "always"), (1, 2))
    assert [own.choice for own in importances(names, twice, score)] == ["b"]
    assert importances({"a": (1, 2), "b": (1, 2)}, codes[:11], score[:11]) == []
    assert importances({"a": (1, 2), "b": (1, 2)}, codes, np.ones(len(codes))) == []
