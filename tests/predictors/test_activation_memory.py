import timm
import torch
from torch import nn

from predictors.activation_memory import peak_activation, peak_activation_bytes
from supernet.families import FAMILIES

PIXELS = 10 * 10


def peak(*layers):
    return peak_activation_bytes(nn.Sequential(*layers).to("meta").eval(), (3, 10, 10))


def test_peak_by_hand():
    image = 3 * PIXELS
    assert peak(nn.Conv2d(3, 8, 1)) == 4 * (image + 8 * PIXELS)
    assert peak(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True)) == 4 * (image + 8 * PIXELS)
    assert peak(nn.Conv2d(3, 8, 1), nn.ReLU()) == 4 * (image + 16 * PIXELS)
    # the image stays, the first activation is freed before the third is made
    assert peak(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 4, 1)) == 4 * (image + 10 * PIXELS)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        return self.narrow(self.wide(x)) + x


def test_a_residual_keeps_its_input_alive():
    assert peak(nn.Conv2d(3, 3, 1), Residual()) == 4 * (3 + 3 + 8 + 3) * PIXELS


def test_the_cost_of_a_family_allocates_nothing_and_grows():
    family = FAMILIES["mobilenet_v3_micro"](num_classes=10)
    cost = peak_activation(family.build, lambda arch: (3, family.resolution(arch), family.resolution(arch)))
    smallest, largest = cost([family.space.smallest, family.space.largest])
    assert 0 < smallest < largest
    assert isinstance(smallest, int)


def test_the_peak_of_mobilenet_v2_as_deployed_is_the_published_one():
    """MCUNet's model zoo: 308 kB of SRAM for width 0.35 at 144 pixels in int8, which is 304 KiB to 1.3 %."""
    with torch.device("meta"):
        model = timm.create_model("mobilenetv2_035")
    assert peak_activation_bytes(model, 144, bits=8, fused=True) == 311_040
    # the depthwise convolution of the second block: 48 channels, from 72 to 36 pixels a side
    assert 48 * (72**2 + 36**2) == 311_040
    assert peak_activation_bytes(model, (3, 144, 144), bits=8) == peak_activation_bytes(model, 144) // 4 > 660_000


def test_fused_activations_and_normalisation_take_no_memory():
    layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 7, 1))
    assert peak_activation_bytes(layers, (3, 10, 10), fused=True) == 4 * (3 + 8) * PIXELS
    # the image is not kept once the first layer has read it
    assert peak_activation_bytes(layers[3:], (8, 10, 10), bits=16, fused=True) == 2 * 10 * PIXELS


def test_a_fused_residual_is_alive_beside_what_goes_into_and_comes_out_of_the_last_convolution():
    layers = nn.Sequential(nn.Conv2d(3, 3, 1), Residual())
    assert peak_activation_bytes(layers, (3, 10, 10), bits=8, fused=True) == (3 + 8 + 3) * PIXELS
