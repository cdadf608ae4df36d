"""Which outputs subnets keep, and that a refitted one is nearer to the largest."""

import torch
from torch import nn

from supernet import SearchSpace, Supernet
from supernet.evaluation import calibrated
from supernet.families import FAMILIES
from supernet.refitting import kept_outputs, refitted
from supernet.slicing import blocks
from supernet.views import View
from tests.small import small


class Halves(nn.Module):
    """Two halves that are multiplied, and a layer that only a deep one has."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.gated = nn.Linear(4, 2 * width)
        if depth > 1:
            self.more = nn.Linear(width, width)
        self.shared = nn.Linear(width, width)

    def forward(self, x):
        first, second = self.gated(x).chunk(2, -1)
        x = first * second
        return self.shared(self.more(x) if hasattr(self, "more") else x)


def build(arch):
    return Halves(arch["width"], arch["depth"])


SPACE = SearchSpace({"width": (3, 6), "depth": (1, 2)})


def test_outputs_that_are_kept_follow_from_the_slices():
    net = Supernet(SPACE, build, {"gated.*": blocks(2)})
    kept = {name: rows.tolist() for name, rows in kept_outputs(net, SPACE.smallest).items()}
    assert kept == {"gated": [0, 1, 2, 6, 7, 8], "shared": [0, 1, 2]}
    wide = SPACE.validate({"width": 6, "depth": 1})
    assert {name: len(rows) for name, rows in kept_outputs(net, wide).items()} == {"gated": 12, "shared": 6}


def test_layers_of_another_source_are_left_out():
    views = {"shared.weight": View("more.weight")}
    net = Supernet(SPACE, build, {"gated.*": blocks(2)}, views=lambda arch: views)
    assert kept_outputs(net, SPACE.smallest).keys() == {"gated"}


def test_every_layer_of_a_kernel_transform_is_known_by_its_rows():
    family = FAMILIES["ofa_mobilenet_v3"](kernel_transform=True, num_classes=7)
    kept = kept_outputs(family.supernet(), family.space.smallest)
    assert len(kept) > 40
    assert all(torch.equal(rows, torch.arange(len(rows))) for rows in kept.values())


def test_a_refitted_subnet_is_nearer_to_the_largest_than_a_recalibrated_one():
    family = small()
    net = family.supernet()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(80, 3, 24, 24, generator=generator)
    batches, other = list(images[:64].split(16)), images[64:]
    arch = family.space.validate({**family.space.largest, "features.width": 16, "blocks.1.width": 8})
    largest = calibrated(net, family.space.largest, batches)
    with torch.no_grad():
        far, near = (
            (model(other) - largest(other)).square().mean().item()
            for model in (calibrated(net, arch, batches), refitted(net, arch, batches))
        )
    assert near < 0.5 * far
