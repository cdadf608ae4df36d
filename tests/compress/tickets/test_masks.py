"""Masks against counts and orders worked by hand."""

import pytest
import torch
from torch import nn

from compress.tickets.masks import density_of, highest, magnitude_mask, weights_of

TENSORS = {"a": torch.tensor([[0.1, -0.9], [0.5, 0.5]]), "b": torch.tensor([0.5, -0.5, 2.0, 0.0])}


def kept(masks):
    return {name: mask.flatten().int().tolist() for name, mask in masks.items()}


def test_the_least_magnitudes_of_all_tensors_go():
    assert kept(magnitude_mask(TENSORS, 0.25)) == {"a": [0, 1, 1, 1], "b": [1, 1, 1, 0]}
    assert kept(magnitude_mask(TENSORS, 0)) == {"a": [1] * 4, "b": [1] * 4}
    assert kept(magnitude_mask(TENSORS, 1)) == {"a": [0] * 4, "b": [0] * 4}


def test_of_equal_magnitudes_the_first_stay():
    assert kept(magnitude_mask(TENSORS, 0.5)) == {"a": [0, 1, 1, 1], "b": [0, 0, 1, 0]}
    assert kept(magnitude_mask({"a": torch.ones(5)}, 0.6)) == {"a": [1, 1, 0, 0, 0]}


def test_the_least_magnitudes_of_each_tensor_go():
    assert kept(magnitude_mask(TENSORS, 0.5, "layer")) == {"a": [0, 1, 1, 0], "b": [1, 0, 1, 0]}
    each = magnitude_mask(TENSORS, {"a": 0.75, "b": 0.25}, "layer")
    assert kept(each) == {"a": [0, 1, 0, 0], "b": [1, 1, 1, 0]}
    assert density_of(each) == 0.5


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("rounds", range(1, 12))
def test_exactly_the_rounded_number_is_kept_and_nothing_returns(scope, rounds):
    generator = torch.Generator().manual_seed(rounds)
    within, density = None, 1.0
    for _ in range(rounds):
        density *= 0.8
        scores = {name: torch.randn(shape, generator=generator) for name, shape in (("a", (7, 11)), ("b", (123,)))}
        masks = highest(scores, density, scope, within)
        counts = [int(mask.sum()) for mask in masks.values()]
        if scope == "global":
            assert sum(counts) == round(density * 200)
        else:
            assert counts == [round(density * 77), round(density * 123)]
        assert within is None or not any((masks[name] & ~within[name]).any() for name in masks)
        within = masks


def test_what_is_excluded_is_not_kept_though_it_scores_highest():
    within = {"a": torch.tensor([[True, False], [True, True]]), "b": torch.tensor([False, False, True, True])}
    assert kept(highest(TENSORS, 0.25, within=within)) == {"a": [0, 0, 1, 0], "b": [0, 0, 1, 0]}
    assert kept(highest(TENSORS, 1, within=within)) == kept(within)


def test_scores_of_layers_that_are_negative_are_kept_before_those_excluded():
    scores, within = {"a": torch.tensor([-3.0, 5.0, -2.0])}, {"a": torch.tensor([True, False, True])}
    assert kept(highest(scores, 1 / 3, within=within)) == {"a": [0, 0, 1]}


def test_weights_are_those_of_convolutions_and_linear_layers():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    assert list(weights_of(model)) == ["0.weight", "3.weight"]
    assert list(weights_of(model, ["3"])) == ["0.weight"]
    assert list(weights_of(nn.Linear(2, 2))) == ["weight"]
    with pytest.raises(ValueError, match="'1' is no convolution"):
        weights_of(model, ["1"])
    with pytest.raises(ValueError, match="no weights"):
        weights_of(nn.ReLU())


def test_bad_densities_scopes_and_scores_are_named():
    for words, error in (
        ({"density": 1.2}, r"from 0 to 1, not 1\.2"),
        ({"density": 0.5, "scope": "model"}, "not 'model'"),
        ({"density": {"a": 0.5}}, "need the scope 'layer'"),
    ):
        with pytest.raises(ValueError, match=error):
            highest(TENSORS, **words)
    with pytest.raises(ValueError, match="NaN"):
        highest({"a": torch.tensor([torch.nan])}, 0.5)
