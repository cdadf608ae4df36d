import math

import pytest
import torch

from compress.pruning.threshold import above_threshold, global_threshold, quantile_threshold

SCORES = {"a": torch.tensor([0.1, 0.5, 0.9, 0.2]), "b": torch.tensor([0.05, 0.01]), "c": torch.tensor([2.0, 0.3])}


def test_one_threshold_for_all_layers_by_hand():
    """In order: 0.01 0.05 0.1 0.2 0.3 0.5 0.9 2; half of eight channels are up to 0.2."""
    assert quantile_threshold(SCORES, 0.5) == pytest.approx(0.2)
    assert above_threshold(SCORES, quantile_threshold(SCORES, 0.5)) == {"a": 2, "b": 1, "c": 2}  # b would have none
    assert above_threshold(SCORES, quantile_threshold(SCORES, 0.5), {"a": 3, "b": 5}) == {"a": 3, "b": 2, "c": 2}
    assert above_threshold(SCORES, quantile_threshold(SCORES, 0.0)) == {"a": 4, "b": 2, "c": 2}
    assert above_threshold(SCORES, quantile_threshold(SCORES, 1.0)) == {"a": 1, "b": 1, "c": 1}
    with pytest.raises(ValueError, match=r"from 0 to 1, not 1\.5"):
        quantile_threshold(SCORES, 1.5)


@pytest.mark.parametrize("most", range(3, 9))
def test_the_lowest_admissible_threshold_is_found(most):
    def is_admissible(threshold):
        return sum(above_threshold(SCORES, threshold).values()) <= most

    every = [-math.inf, *sorted(torch.cat(list(SCORES.values())).double().tolist())]
    assert global_threshold(SCORES, is_admissible) == next(t for t in every if is_admissible(t))


def test_there_is_none_where_even_the_floors_are_too_many():
    assert global_threshold(SCORES, lambda threshold: False) is None
