import math

import pytest
import torch
from torch import nn

from supernet.families.low_bits import first_step, in_few_bits, roundable, rounded


def test_values_are_the_nearest_multiples_within_the_ends():
    values = torch.tensor([-9.0, -1.3, -0.2, 0.2, 0.3, 0.9, 9.0])
    assert rounded(values, torch.tensor(0.5), 3, 7).tolist() == [-2.0, -1.5, 0.0, 0.0, 0.5, 1.0, 1.5]


def test_gradients_are_those_of_the_paper():
    """Equation 3 by hand, in 3 bits: -4 to 3 steps of 0.5; the scale is that of 5 values."""
    values = torch.tensor([-9.0, -1.3, 0.2, 0.9, 9.0], requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    outer = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    (rounded(values, step, 3, 5) * outer).sum().backward()
    assert values.grad.tolist() == [0, 2, 3, 4, 0]
    of_step = [-4, -3 + 2.6, 0 - 0.4, 2 - 1.8, 3]
    expected = sum(a * b for a, b in zip(of_step, outer.tolist())) / math.sqrt(5 * 3)
    assert step.grad.item() == pytest.approx(expected, rel=1e-5)


def test_a_layer_computes_on_rounded_weights_and_inputs():
    torch.manual_seed(0)
    for layer, x in ((nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 5, 5)), (nn.Linear(6, 4), torch.randn(2, 6))):
        weight = layer.weight.detach().clone()
        in_few_bits(layer, (2, 4), 4)
        assert torch.equal(layer.weight, weight)
        weight_step, input_step = layer.weight_steps[1], layer.input_steps[1]
        assert weight_step.item() == pytest.approx(2 * weight.abs().mean().item() / math.sqrt(7))
        found = layer(x)
        layer_weight = rounded(weight, weight_step, 4, 1)
        assert len((layer_weight / weight_step).round().unique()) <= 16
        kind = nn.functional.conv2d if weight.ndim == 4 else nn.functional.linear
        extra = {"padding": 1} if weight.ndim == 4 else {}
        assert torch.equal(found, kind(rounded(x, input_step, 4, 1), layer_weight, layer.bias, **extra))


def test_layers_of_classes_of_their_own_stay_in_float():
    class Own(nn.Linear):
        pass

    assert list(roundable(nn.Sequential(nn.Linear(2, 2), Own(2, 2), nn.Conv1d(2, 2, 1)))) == ["0"]


def test_the_first_step_is_near_the_best_for_normal_values():
    """Of all steps the one that LSQ starts with has at most twice the least squared error, in 4 bits."""
    torch.manual_seed(0)
    values = torch.randn(20_000)

    def error(step):
        return (rounded(values, torch.as_tensor(step), 4, 1) - values).square().mean().item()

    assert error(first_step(values.abs().mean(), 4)) < 4 * min(error(step / 100) for step in range(5, 150, 5))
