import numpy as np
import pytest
from scipy.stats import kendalltau, rankdata

from search.untrained.ensemble import majority_vote, mean_rank

SCORES = np.array([[1.0, 2.0, 3.0, 4.0], [10.0, 40.0, 20.0, 20.0]])


def test_mean_rank_by_hand():
    # beaten of four, oneself a tie: (1/2, 3/2, 5/2, 7/2) and (1/2, 7/2, 2, 2), over 4 and averaged
    np.testing.assert_allclose(mean_rank(SCORES), [0.125, 0.625, 0.5625, 0.6875])


def test_mean_rank_orders_as_the_sum_of_ranks():
    scores = np.random.default_rng(0).normal(size=(3, 50)).round(1)
    expected = sum(rankdata(row) for row in scores)
    assert kendalltau(mean_rank(scores), expected).statistic == pytest.approx(1)


def test_vote_by_hand():
    # two judges of three prefer the first to the second, the second to the third, the third to the first
    circle = [[3, 2, 1], [1, 3, 2], [2, 1, 3]]
    np.testing.assert_allclose(majority_vote(circle), [0.5, 0.5, 0.5])
    # a majority beats a large margin
    np.testing.assert_allclose(majority_vote([[1, 2], [1, 2], [1e9, 0]]), [0.25, 0.75])
    np.testing.assert_allclose(majority_vote([[1, 2], [2, 1]]), [0.5, 0.5])


@pytest.mark.parametrize("combine", [mean_rank, majority_vote])
def test_a_fixed_reference_makes_calls_comparable(combine):
    generator = np.random.default_rng(0)
    scores, reference = generator.normal(size=(3, 10)), generator.normal(size=(3, 20))
    together = combine(scores, reference)
    apart = np.concatenate([combine(scores[:, :4], reference), combine(scores[:, 4:], reference)])
    np.testing.assert_array_equal(together, apart)
    assert combine(reference.max(axis=1, keepdims=True) + 1, reference) == 1
    assert combine(reference.min(axis=1, keepdims=True) - 1, reference) == 0


@pytest.mark.parametrize("combine", [mean_rank, majority_vote])
def test_bad_input_is_named(combine):
    with pytest.raises(ValueError, match="NaN"):
        combine([[1.0, np.nan]])
    with pytest.raises(ValueError, match=r"not \(2,\) among"):
        combine([1.0, 2.0])
    with pytest.raises(ValueError, match=r"\(2, 4\) among \(1, 4\)"):
        combine(SCORES, SCORES[:1])
