import itertools

import pytest
from torch import nn

from supernet.families import FAMILIES, Family, describe
from supernet.space import SearchSpace


def test_the_range_of_costs_is_that_of_all_cells():
    family = FAMILIES["nasbench201"](channels=4, cells=1)
    codes = itertools.product(range(5), repeat=6)
    archs = family.space.decode(list(itertools.islice(codes, 0, None, 7)))
    description = describe("nasbench201", family)
    conv = {f"edge.{e}": "nor_conv_3x3" for e in ("0-1", "0-2", "1-2", "0-3", "1-3", "2-3")}
    assert description.parameters[1] == family.parameters(family.space.validate(conv))
    for cost, (fewest, most) in ((family.macs, description.macs), (family.parameters, description.parameters)):
        assert all(fewest <= cost(arch) <= most for arch in archs)
        assert fewest in map(cost, archs)


def test_ordered_spaces_range_from_the_smallest_to_the_largest():
    family = FAMILIES["ofa_mobilenet_v3"]()
    description = describe("ofa_mobilenet_v3", family)
    assert description.name == "ofa_mobilenet_v3"
    assert description.size == family.space.size
    assert description.macs == (family.macs(family.space.smallest), family.macs(family.space.largest))
    assert description.parameters == (3_410_792, 7_664_760)
    assert "1908.09791" in description.paper


def test_every_family_of_the_literature_names_its_paper():
    for name, make in FAMILIES.items():
        assert "arXiv" in make().paper or name in ("from_timm", "timm", "mobilenet_v3_micro")


def test_costs_that_are_not_given_are_counted():
    family = FAMILIES["mobilenet_v3_micro"]()
    plain = Family(family.space, family.build, num_classes=10)
    for arch in (family.space.largest, family.space.smallest):
        assert plain.macs(arch) == family.macs(arch)
        assert plain.parameters(arch) == family.parameters(arch)


def test_images_without_a_size_are_refused():
    with pytest.raises(ValueError, match="say the images' input_size"):
        Family(SearchSpace({"width": (8, 16)}), nn.Identity, num_classes=10)


class Shrinking(nn.Module):
    """A residual that is added where the shapes happen to be equal, and a forward pass that may ask for values."""

    def __init__(self, width: int, asks: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 1)
        self.head = nn.Linear(width, 4)
        self.asks = asks

    def forward(self, x):
        y = self.conv(x)
        if self.asks and x.abs().max().item() < 0:
            return y
        return self.head((y + x if y.shape == x.shape else y).mean((2, 3)))


@pytest.mark.parametrize("asks", [False, True])
def test_a_residual_that_comes_and_goes_is_refused(asks):
    def family(*widths):
        return Family(SearchSpace({"width": widths}), lambda arch: Shrinking(arch["width"], asks), 4, input_size=8)

    with pytest.raises(ValueError, match=r"module '' calls add in one of .*let the builder pin it"):
        family(2, 3).supernet()
    family(1, 2).supernet()


def test_a_model_that_does_not_take_the_familys_images_is_refused_in_one_line():
    two_inputs = nn.Bilinear(8, 8, 4)
    for build, why in (
        (lambda arch: nn.Conv2d(4, 4, 1), "4 channels"),
        (lambda arch: two_inputs, "missing 1 required"),
    ):
        with pytest.raises(ValueError, match=f"does not run: .*{why}") as error:
            Family(SearchSpace({"resolution": (8,), "width": (1, 2)}), build, 4).supernet()
        assert "\n" not in str(error.value)
