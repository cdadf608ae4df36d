"""Operations counted by hand, and how they fuse."""

import pytest
import timm
import torch
from torch import nn

from supernet.costs import count_macs
from supernet.operations import operations

PIXELS = 10 * 10


class Gated(nn.Module):
    """A convolution scaled by a gate that follows from it, as squeeze-and-excitation does."""

    def __init__(self):
        super().__init__()
        self.conv, self.gate = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 8, 1, bias=False)

    def forward(self, x):
        x = self.conv(x)
        return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 3, 1, bias=False)

    def forward(self, x):
        return (self.narrow(self.wide(x)) + x).relu()


def kinds(model, fused):
    return [operation.kind for operation in operations(model, (3, 10, 10), fused).operations]


def test_an_operation_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    convolution, normalisation, activation = operations(model, (3, 10, 10)).operations
    assert (convolution.layer, normalisation.layer, activation.layer) == ("0", "1", "2")
    assert (convolution.macs, convolution.weights) == (3 * 8 * 9 * PIXELS, 3 * 8 * 9 + 8)
    assert (convolution.read, convolution.written) == (3 * PIXELS, 8 * PIXELS)
    assert (activation.read, activation.written, activation.macs) == (8 * PIXELS, 8 * PIXELS, 0)
    (fused,) = operations(model, (3, 10, 10), fused=True).operations
    assert (fused.read, fused.written, fused.weights) == (3 * PIXELS, 8 * PIXELS, 3 * 8 * 9 + 8 + 8)
    assert fused.bytes_moved(8) == 11 * PIXELS + 232
    assert fused.intensity(8) == 2 * fused.macs / fused.bytes_moved(8)


def test_the_sum_of_a_residual_is_part_of_the_convolution_before_it():
    assert kinds(Residual(), fused=False) == ["convolution", "convolution", "add", "relu"]
    _, narrow = operations(Residual(), (3, 10, 10), fused=True).operations
    assert (narrow.read, narrow.written) == ((8 + 3) * PIXELS, 3 * PIXELS)


def test_a_gate_that_is_not_there_yet_cannot_be_part_of_what_it_scales():
    assert kinds(Gated(), fused=True) == ["convolution", "mean", "convolution", "mul"]
    found = operations(Gated(), (3, 10, 10), fused=True)
    assert max(sum(found.sizes[buffer] for buffer in alive) for alive in found.alive()) == (3 + 8) * PIXELS


def test_what_follows_from_weights_alone_is_a_constant():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return nn.functional.conv2d(x, self.weight - self.weight.mean())

    assert kinds(Standardised(3, 8, 1), fused=False) == ["convolution"]


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vit_tiny_patch16_224", "resnet10t"])
def test_operations_sum_to_the_macs_of_the_network(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    size = (3, 224, 224)
    for fused in (False, True):
        assert sum(o.macs for o in operations(model, size, fused).operations) == count_macs(model, size)
