import pytest
import torch
from torch import nn

from compress.binary import BinaryAware, RetainedSign


def test_weights_are_a_power_of_two_times_the_sign_of_what_is_standardised():
    """By hand: of 1, 2, 6 less their mean the signs are -, -, +; their mean magnitude over sqrt(7) is 0.756, whose
    nearest power of two, in logarithms, is 1. That of a channel with one outlier is lower."""
    weight = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 1.0]])
    assert RetainedSign()(weight).tolist() == [[-1, -1, 1], [1, 1, -1]]
    outlier = torch.zeros(1, 100)
    outlier[0, 0] = 1.0
    assert RetainedSign()(outlier)[0, :2].tolist() == [0.25, -0.25]  # mean |u| = 0.198


@pytest.mark.parametrize("steepness", [0.1, 1.0, 10.0])
def test_the_gradient_is_that_of_the_scaled_tanh(steepness):
    torch.manual_seed(0)
    weight, outer = torch.randn(3, 2, 3, 3, requires_grad=True), torch.randn(3, 2, 3, 3)
    sign = RetainedSign()
    sign.steepness = steepness
    binary = sign(weight)
    (found,) = torch.autograd.grad((binary * outer).sum(), weight)
    flat = weight.flatten(1)
    standardised = (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)
    scale = binary.detach().abs().flatten(1)[:, :1]
    soft = scale * max(1 / steepness, 1) * torch.tanh(steepness * standardised)
    (expected,) = torch.autograd.grad((soft * outer.flatten(1)).sum(), weight)
    torch.testing.assert_close(found, expected)


def test_the_first_and_the_last_layer_stay_and_the_gradient_sharpens():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    aware = BinaryAware(network)
    aware.begin_step(0, 11)
    assert aware._signs[0].steepness == pytest.approx(0.1)
    aware.begin_step(5, 11)
    assert aware._signs[0].steepness == pytest.approx(1)
    aware.begin_step(10, 11)
    assert aware._signs[0].steepness == pytest.approx(10)
    images = torch.randn(2, 3, 5, 5)
    expected = aware(images)
    plain = aware.plain()
    assert torch.equal(plain(images), expected)
    assert set(plain.state_dict()) == {f"{index}.{leaf}" for index in (0, 1, 3) for leaf in ("weight", "bias")}
    values = plain[1].weight.detach()
    assert all(len(channel.unique()) == 2 for channel in values)
    assert len(plain[0].weight.unique()) > 50


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="'9' is no convolution or linear layer of the Sequential"):
        BinaryAware(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), exclude=("9",))


def test_one_bit_is_trained():
    """Two classes by the sign of a sum are learnt by a network whose middle weights are one bit."""
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    y = (x.sum(1) > 0).long()
    aware = BinaryAware(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)))
    optimizer = torch.optim.Adam(aware.parameters(), 1e-2)
    for step in range(100):
        aware.begin_step(step, 100)
        optimizer.zero_grad()
        nn.functional.cross_entropy(aware(x), y).backward()
        optimizer.step()
    assert (aware.plain()(x).argmax(1) == y).float().mean() > 0.97
