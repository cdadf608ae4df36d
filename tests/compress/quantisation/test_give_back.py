import itertools

import pytest
from torch import nn

from compress.quantisation.give_back import OPTIONS, bytes_of_weight, fewest_steps, least_divergence, steps_back
from compress.sensitivity import Sensitivity

DIVERGENCES = {"0": (0.5, 0.1), "2": (0.3, 0.25), "4": (0.05, 0.0)}  # in int8, and with weights alone in 8 bits
FOUND = [
    Sensitivity(layer, precision, value, 0.0)
    for layer, values in DIVERGENCES.items()
    for precision, value in zip(("int8", "weights"), values)
]


def test_layers_are_given_back_by_what_that_takes_off():
    # layer 0 gains 0.4, then 0.1; layer 2 0.05, then 0.25, and so at once 0.15 a step; layer 4 0.05, then nothing
    assert steps_back(FOUND) == [
        {},
        {"0": "weights"},
        {"0": "weights", "2": "float"},
        {"0": "float", "2": "float"},
        {"0": "float", "2": "float", "4": "weights"},
        {"0": "float", "2": "float", "4": "float"},
    ]


@pytest.mark.parametrize("enough", range(7))
def test_the_fewest_steps_that_fit_are_taken(enough):
    steps, tried = steps_back(FOUND), []

    def fits(step):
        tried.append(step)
        return steps.index(step) >= enough

    assert fewest_steps(steps, fits) == (steps[enough] if enough < len(steps) else None)
    assert len(tried) <= 5


def test_bytes_are_used_up_as_brute_force_would():
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3))
    divergence = {(own.layer, own.precision): own.divergence for own in FOUND}
    divergence |= dict.fromkeys(((layer, "float") for layer in DIVERGENCES), 0.0)

    def cost(way):
        return sum(bytes_of_weight(model[int(layer)], precision) for layer, precision in zip(DIVERGENCES, way))

    def total(way):
        return sum(divergence[pair] for pair in zip(DIVERGENCES, way))

    ways = list(itertools.product(OPTIONS, repeat=3))
    assert bytes_of_weight(model[0], "int8") == 120 + 20 * 4
    for limit in (cost(("int8",) * 3), 1400, 2000, 2600, cost(("float",) * 3)):
        found = least_divergence(FOUND, model, limit)
        way = [found.get(layer, "int8") for layer in DIVERGENCES]
        assert cost(way) <= limit
        assert total(way) == pytest.approx(min(total(other) for other in ways if cost(other) <= limit))
    with pytest.raises(ValueError, match="the least is 1022"):
        least_divergence(FOUND, model, 1000)
