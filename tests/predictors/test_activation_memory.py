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
