import numpy as np
import pytest
import torch
from torch import nn

from compress.quantisation import Quantisation, Quantised, activation_ranges, compensated, layers, quantise
from compress.quantisation.compensation import DAMPING, EXAMPLES, patches, second_moments
from compress.transforms import Bits


def correlated(count, inputs, seed=0):
    """Inputs [count, inputs] that have much in common, and a mean that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator) / inputs**0.5 + 0.5
    return torch.randn(count, inputs, generator=generator) @ mixing + 1


def one_by_one(weight, bias, x, bits):
    """The same by least squares: after each rounding, what is left is chosen anew, near what it was."""
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    damping = DAMPING * np.square(x).sum(0).mean()
    rows = np.concatenate([x, np.sqrt(damping) * np.eye(x.shape[1])])
    found = []
    for own, shift in zip(weight, bias):
        values, highest = np.append(own, shift), 2 ** (bits - 1) - 1
        step, place = np.abs(own).max() / highest, np.abs(own).argmax()
        for j in range(len(own)):
            integer = np.clip(np.round(values[j] / step), -highest, highest)
            rounded = step * (np.sign(values[j]) * highest if j == place else integer)
            missing = rows[:, j] * (values[j] - rounded)
            values[j + 1 :] += np.linalg.lstsq(rows[:, j + 1 :], missing, rcond=None)[0]
            values[j] = rounded
        found.append(values)
    return np.array(found)


@pytest.mark.parametrize(("bits", "block"), [(3, 128), (8, 128), (4, 4)])
def test_what_is_left_makes_up_for_each_rounding_as_well_as_it_can(bits, block, monkeypatch):
    monkeypatch.setattr("compress.quantisation.compensation.BLOCK", block)
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 4)).eval(), correlated(50, 6)
    expected = one_by_one(*(p.detach().double().numpy() for p in model[0].parameters()), x.double().numpy(), bits)
    found = compensated(model, x.split(20), bits)
    together = torch.cat([found["0.weight"], found["0.bias"][:, None]], 1)
    np.testing.assert_allclose(together.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", [nn.Linear(24, 10), nn.Conv1d(24, 8, 3, groups=2, bias=False)])
def test_outputs_are_nearer_than_with_the_nearest_weights(layer):
    torch.manual_seed(0)
    x = correlated(EXAMPLES, 24)
    x = x if isinstance(layer, nn.Linear) else torch.stack([x, x.flip(0), 0.5 * x, x], 2)
    model = nn.Sequential(layer).eval()
    met = activation_ranges(model, [x])
    alone = dict.fromkeys(layers(model), "weights")
    with torch.no_grad():
        nearest, made_up = (
            (Quantised(model, Quantisation(met, alone, 4, values))(x) - model(x)).square().mean()
            for values in ({}, compensated(model, [x], 4))
        )
    assert made_up < nearest / 2


def test_values_are_those_that_a_file_can_hold():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    with torch.no_grad():
        model[0].weight[1] = 0.0
    for name, value in compensated(model, [correlated(40, 6)]).items():
        if name.endswith("weight"):
            own = model.get_parameter(name)
            torch.testing.assert_close(Bits(8)(value), value, rtol=1e-6, atol=0)
            torch.testing.assert_close(value.abs().amax(1), own.abs().amax(1))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 7, 6)),
        (nn.Conv2d(4, 4, (1, 3), dilation=2, groups=4), (2, 4, 5, 8)),
        (nn.Conv1d(4, 6, 3, padding=1), (3, 4, 9)),
        (nn.Linear(4, 6), (3, 5, 4)),
    ],
)
def test_patches_times_weights_are_what_a_layer_gives(layer, shape):
    x = torch.randn(shape)
    own, groups = patches(layer, x), getattr(layer, "groups", 1)
    weights = layer.weight.reshape(groups, -1, layer.weight[0].numel())
    weights = torch.cat([weights, layer.bias.reshape(groups, -1, 1)], 2)
    found = (weights @ own).flatten(0, 1)  # [O, P]
    output = layer(x)
    output = output.flatten(0, -2).T if isinstance(layer, nn.Linear) else output.transpose(0, 1).flatten(1)
    torch.testing.assert_close(found, output, atol=1e-5, rtol=1e-5)


def test_batches_and_their_parts_make_no_difference(monkeypatch):
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3)).double().eval(), torch.randn(EXAMPLES + 6, 3, 5, 5).double()
    whole = second_moments(model, [x])["0"]
    monkeypatch.setattr("compress.quantisation.compensation.AT_ONCE", 1)
    torch.testing.assert_close(second_moments(model, x.split(25))["0"], whole)
    torch.testing.assert_close(second_moments(model, [x[:EXAMPLES]])["0"], whole)


def test_layers_in_float_keep_their_values():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).eval()
    found = quantise(model, [correlated(40, 6)], precisions={"2": "float"}).network
    assert torch.equal(found[2].weight, model[2].weight)
    assert torch.equal(found[2].bias, model[2].bias)
    assert not torch.equal(found[0].bias, model[0].bias)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 6), nn.Linear(6, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


def test_a_tied_embedding_is_not_rounded_with_the_layer():
    torch.manual_seed(0)
    model = Tied().eval()
    found = quantise(model, [torch.arange(5)]).network
    assert torch.equal(found.embedding.weight, model.embedding.weight)
    assert not torch.equal(found.head.weight, model.head.weight)
