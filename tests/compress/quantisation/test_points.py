import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.quantisation.points import Observing, Points, layers


class Residual(nn.Module):
    """stem, BatchNorm, ReLU in place; a branch padded by hand; a sum; a gate that no layer computes; pooling; head."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.branch, self.head = nn.Conv2d(4, 4, 3), nn.Linear(4, 5)

    def forward(self, images):
        x = F.relu(self.norm(self.stem(images)), inplace=True)
        x = x + F.hardswish(self.branch(F.pad(x, [1, 1, 1, 1])))
        return F.linear(weight=self.head.weight, bias=self.head.bias, input=x.mean((2, 3)))  # as some networks do


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Residual().eval()


def met(model, without=()):
    """The points at which `model` is quantised, in order, if all layers but `without` are in int8."""
    found = []

    def round_off(point, x):
        found.append(point)
        return x.clone()

    weights = {id(layer.weight): name for name, layer in layers(model).items() if name not in without}
    with torch.no_grad(), Points(weights, round_off):
        model(torch.randn(2, 3, 6, 6))
    return found


def test_layers_get_and_give_quantised_values_and_sums_are_in_float(model):
    # padding keeps the values, and is quantised as they were
    assert met(model) == ["stem.input", "stem.output", "stem.output", "branch.output", "head.input"]


def test_a_layer_in_float_gets_what_there_is_and_gives_what_it_computes(model):
    assert met(model, {"branch"}) == ["stem.input", "stem.output", "head.input"]
    assert met(model, {"stem"}) == ["branch.input", "branch.output", "head.input"]
    assert met(model, {"stem", "branch", "head"}) == []


def test_observing_meets_every_point_there_may_be_and_changes_nothing(model):
    images, seen = torch.randn(2, 3, 6, 6), {}
    weights = {id(layer.weight): name for name, layer in layers(model).items()}
    with torch.no_grad():
        expected = model(images)
        with Observing(weights, seen.__setitem__):
            found = model(images)
    assert torch.equal(found, expected)
    assert set(seen) == {"stem.input", "stem.output", "branch.input", "branch.output", "head.input"}
    assert seen["branch.input"].shape == (2, 4, 8, 8)
    assert seen["stem.output"].min() == 0  # behind BatchNorm and ReLU
