import copy
import itertools
import re
from functools import partial
from typing import NamedTuple

import pytest
import torch
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


WITHOUT_A_PAPER = ("from_timm", "timm", "narrowed", "mobilenet_v3_micro")


def test_every_family_of_the_literature_names_its_paper():
    for name, make in FAMILIES.items():
        assert re.search(r"arXiv| et al\. \d{4}", make().paper) or name in WITHOUT_A_PAPER


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
    for layer, why in ((nn.Conv2d(4, 4, 1), "4 channels"), (nn.Bilinear(8, 8, 4), "missing 1 required")):
        family = Family(SearchSpace({"resolution": (8,), "width": (1, 2)}), partial(copied, layer), 4)
        with pytest.raises(ValueError, match=f"does not run: .*{why}") as error:
            family.supernet()
        assert "\n" not in str(error.value)


def copied(module, arch, **options):
    return copy.deepcopy(module)


class Gives(nn.Module):
    """Logits of 4 classes, in a form of their own."""

    def __init__(self, form, form_in_training=None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.form, self.form_in_training = form, form_in_training or form

    def forward(self, x):
        y = self.conv(x)
        return (self.form_in_training if self.training else self.form)(y, y.mean((2, 3)))


class Outputs(NamedTuple):
    logits: torch.Tensor
    auxiliary: torch.Tensor


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Gives(lambda y, logits: {"out": logits, "map": y}),
            r"gives a dict of 'out': a tensor \[2, 4\], 'map': a tensor",
        ),
        (Gives(lambda y, logits: (logits, y)), r"gives a tuple of a tensor \[2, 4\], a tensor .* instead of logits"),
        (Gives(lambda y, logits: y), r"^this model gives a tensor \[2, 4, 8, 8\] instead of logits \[B, K\]: wrap it"),
        (
            Gives(lambda y, logits: logits, lambda y, logits: Outputs(logits, logits)),
            r"gives a Outputs of .*\(and make it without auxiliary heads\)",
        ),
        (Gives(lambda y, logits: logits[:, :3]), "^the model gives logits of 3 classes, and its family says 4"),
    ],
)
def test_what_gives_no_logits_is_refused_by_what_it_gives(model, message):
    family = Family(SearchSpace({"resolution": (8,)}), partial(copied, model), 4)
    with pytest.raises(ValueError, match=message) as error:
        family.supernet()
    assert "\n" not in str(error.value)


def test_a_model_in_double_precision_is_a_family_too():
    model = Gives(lambda y, logits: logits).double()
    family = Family(SearchSpace({"resolution": (8,)}), partial(copied, model), 4)
    net = family.supernet()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(images, family.space.largest), model(images))
    assert family.macs(family.space.largest) == 64 * 3 * 4
