import itertools

import pytest
import torch
from torch import nn

from compress.quantisation.give_back import OPTIONS, fewest_steps, layer_costs, steps_back
from compress.sensitivity import Sensitivity

DIVERGENCES = {"0": (0.5, 0.1), "2": (0.3, 0.25), "4": (0.05, 0.0)}  # in int8, and with weights alone in 8 bits
FOUND = [
    Sensitivity(layer, precision, value, 0.0)
    for layer, values in DIVERGENCES.items()
    for precision, value in zip(("int8", "weights"), values)
]
WAYS = list(itertools.product(OPTIONS, repeat=3))


@pytest.fixture(scope="module")
def costs():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 30), nn.ReLU(), nn.Linear(30, 3))
    return layer_costs(model, (torch.zeros(1, 1, 8, 8),))


def total(way, of):
    return sum(of(layer, precision) for layer, precision in zip(DIVERGENCES, way))


def divergence(layer, precision):
    return dict(zip(OPTIONS, (*DIVERGENCES[layer], 0.0)))[precision]


def test_costs_of_a_layer(costs):
    # a convolution of 4 kernels of 9 weights on 6 x 6 pixels
    assert costs["0"]["int8"] == (36 + 4 * 4, 64 * 1296)
    assert costs["0"]["weights"] == (36 + 4 * 4, 1024 * 1296 + 256 * 36)
    assert costs["0"]["float"] == (4 * 36, 1024 * 1296)
    assert costs["2"]["float"].bit_operations == 1024 * 144 * 30


@pytest.mark.parametrize("weight_bytes", [4700, 4900, 17000, float("inf")])
def test_each_step_is_the_cheapest_of_its_divergence(costs, weight_bytes):
    whole = [sum(costs[layer]["int8"][i] for layer in DIVERGENCES) for i in (0, 1)]

    def taken(way):
        return total(way, lambda layer, precision: costs[layer][precision].bytes)

    def price(way):
        return total(way, lambda layer, precision: sum(c / w for c, w in zip(costs[layer][precision], whole)))

    within = [way for way in WAYS if taken(way) <= weight_bytes]
    steps = [tuple(step.get(layer, "int8") for layer in DIVERGENCES) for step in steps_back(FOUND, costs, weight_bytes)]
    assert steps[0] == ("int8",) * 3
    assert all(way in within for way in steps)
    assert total(steps[-1], divergence) == pytest.approx(min(total(way, divergence) for way in within))
    expected, allowed = steps[:1], 0.8 * 0.85
    while allowed > max(total(steps[-1], divergence), 0.85e-3):
        expected.append(min((way for way in within if total(way, divergence) <= allowed), key=price))
        allowed *= 0.8
    assert steps == list(dict.fromkeys([*expected, steps[-1]]))


def test_activations_are_in_float_only_where_bytes_are_short(costs):
    assert not any("weights" in step.values() for step in steps_back(FOUND, costs)[1:])
    least = sum(costs[layer]["int8"].bytes for layer in DIVERGENCES)
    assert steps_back(FOUND, costs, least)[-1] == dict.fromkeys(DIVERGENCES, "weights")
    with pytest.raises(ValueError, match=f"the least is {least}"):
        steps_back(FOUND, costs, least - 1)


@pytest.mark.parametrize("enough", range(7))
def test_the_fewest_steps_that_fit_are_taken(enough):
    steps, tried = [{str(i): "float"} for i in range(6)], []

    def fits(step):
        tried.append(step)
        return steps.index(step) >= enough

    assert fewest_steps(steps, fits) == (steps[enough] if enough < len(steps) else None)
    assert len(tried) <= 5
