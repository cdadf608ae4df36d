import numpy as np
import pytest
import torch
from torch import nn

from compress.quantisation.ranges import BINS, Range, activation_ranges, least_squares


def error(values, low, high):
    own = Range(low, high)
    rounded = (np.clip(np.round(values / own.step) + own.zero_point, 0, 255) - own.zero_point) * own.step
    return np.square(rounded - values).sum()


def test_a_range_holds_zero_exactly():
    own = Range(-1.0, 2.0)
    assert own.step == pytest.approx(3 / 255)
    assert own.zero_point == 85
    assert Range(0.0, 6.0).zero_point == 0
    assert Range(0.0, 0.0).step > 0  # of what is always 0


def test_extremes_are_those_of_all_batches_and_of_zero():
    model = nn.Sequential(nn.Linear(2, 1))
    batches = [torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 7.0]])]
    assert activation_ranges(model, batches, "extremes") == {"0.input": (0.0, 7.0)}


def test_few_large_values_are_cut_off_where_that_makes_the_error_least():
    values = np.random.default_rng(0).standard_normal(100_000)
    values[:3] = 16, -4.5, 11
    counts, _ = np.histogram(values, BINS, (values.min(), values.max()))
    found = least_squares(counts, Range(values.min(), values.max()))
    ends = np.linspace(3, 16, 53)
    best = min(error(values, -a, b) for a in ends[ends <= 4.6] for b in ends)
    assert error(values, *found) < 1.02 * best
    assert error(values, *found) < 0.9 * error(values, values.min(), values.max())


def test_what_cannot_be_calibrated_is_named():
    model = nn.Sequential(nn.Linear(2, 1))
    with pytest.raises(ValueError, match="at least one batch"):
        activation_ranges(model, [])
    with pytest.raises(ValueError, match=r"the network gives nan to nan at 0\.input"):
        activation_ranges(model, [torch.full((1, 2), torch.nan)])
