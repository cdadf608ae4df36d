import itertools

import pytest
import torch
from torch import nn

from compress.binary import BinaryAware, BinaryInput, RetainedSign, ScaledSign, XnorAware


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


def test_no_scaled_signs_are_nearer_to_the_weights():
    torch.manual_seed(0)
    weight = torch.randn(1, 4)
    nearest = (weight - ScaledSign()(weight)).square().sum()
    for signs in itertools.product((-1.0, 1.0), repeat=4):
        signs = torch.tensor([signs])
        scale = (weight * signs).mean().clamp_min(0)  # the best for these signs
        assert nearest <= (weight - scale * signs).square().sum() + 1e-6


def test_the_gradient_of_a_scaled_sign_is_the_published_one():
    """By hand: of 0.5 and -2 the mean magnitude is 1.25; the gradients are 1 / 2 + 1.25 and 1 / 2."""
    weight = torch.tensor([[0.5, -2.0]], requires_grad=True)
    binary = ScaledSign()(weight)
    assert binary.tolist() == [[1.25, -1.25]]
    binary.backward(torch.tensor([[1.0, 10.0]]))
    assert weight.grad.tolist() == [[1.75, 5.0]]


@pytest.mark.parametrize("groups", [1, 2])
def test_inputs_of_one_bit_have_the_mean_magnitude_that_a_filter_sees(groups):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=groups)
    x = torch.randn(2, 4, 7, 6)
    found = BinaryInput(layer)(x)
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    for place in itertools.product(range(2), range(6), range(found.shape[2]), range(found.shape[3])):
        image, out, row, column = place
        first = out // (6 // groups) * (4 // groups)
        seen = padded[image, first : first + 4 // groups, 2 * row : 2 * row + 3, 2 * column : 2 * column + 2]
        product = (seen.sign() * layer.weight[out]).sum()  # padding has the sign 0
        assert found[place].item() == pytest.approx((product * seen.abs().mean() + layer.bias[out]).item(), abs=1e-5)


def test_inputs_of_one_bit_have_a_gradient_within_1():
    layer = BinaryInput(nn.Linear(3, 1, bias=False))
    x = torch.tensor([[0.5, -2.0, -0.25]], requires_grad=True)
    weight = layer.layer.weight.detach()[0]
    layer(x).sum().backward()
    mean, product = 2.75 / 3, weight @ torch.tensor([1.0, -1, -1])
    expected = mean * weight * torch.tensor([1.0, 0, 1]) + product / 3 * torch.tensor([1.0, -1, -1])
    torch.testing.assert_close(x.grad[0], expected)


def test_a_network_of_one_bit_is_trained_and_exported(tmp_path):
    """Whether there is more in the upper half of an image than in the lower one."""
    from supernet.artifacts.export import agreement, export_onnx, onnx_runner

    torch.manual_seed(0)
    images = torch.randn(256, 1, 6, 6)
    labels = (images[:, :, :3].sum((1, 2, 3)) > images[:, :, 3:].sum((1, 2, 3))).long()
    aware = XnorAware(
        nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)),
            *(nn.Flatten(), nn.Linear(16 * 36, 2)),
        )
    )
    assert [type(module) for module in aware.network][:3] == [nn.Conv2d, nn.BatchNorm2d, BinaryInput]
    optimizer = torch.optim.Adam(aware.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(aware(images), labels).backward()
        optimizer.step()
    expected = aware.eval()(images)
    assert (expected.argmax(1) == labels).float().mean() > 0.9
    plain = aware.plain()
    assert torch.equal(plain(images), expected)
    assert all(len(channel.unique()) == 2 for channel in plain[2].layer.weight)
    export_onnx(plain, tmp_path / "one.onnx", (1, 6, 6), dynamic_batch=True)
    assert agreement(plain, onnx_runner(tmp_path / "one.onnx"), images).top1 > 0.99


def test_other_layers_than_these_have_no_inputs_of_one_bit():
    with pytest.raises(ValueError, match="padded by zeros, and linear layers, not for Conv2d"):
        BinaryInput(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"))
