import pytest
from torch import nn

from predictors.stored_bytes import stored
from supernet.costs import stored_bytes
from supernet.families import FAMILIES


@pytest.mark.parametrize(("bits", "weights"), [(32, 4 * 216), (16, 2 * 216), (8, 216), (4, 108), (3, 81)])
def test_bytes_by_hand(bits, weights):
    """Kernels at their precision; a bias, a scale and a shift for each of 8 channels in single precision."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    assert stored_bytes(model, bits) == weights + 4 * (8 + 8 + 8)


def test_what_is_used_twice_is_stored_once():
    layer = nn.Linear(5, 5, bias=False)
    assert stored_bytes(nn.Sequential(layer, layer), 8) == 25


def test_the_cost_of_a_family_is_that_of_what_is_extracted():
    family = FAMILIES["mobilenet_v3_micro"](num_classes=10)
    arch = family.space.smallest
    (cost,) = stored(family.build, 32)([arch])
    assert cost == 4 * family.parameters(arch)
