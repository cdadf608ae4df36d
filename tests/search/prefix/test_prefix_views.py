"""Beginnings agree only where sources and transforms of their weights do."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from search.prefix import trie
from search.prefix.dependence import Dependence, chains
from search.prefix.pieces import cut
from supernet import Choice, SearchSpace, Supernet
from supernet.evaluation import calibrated
from supernet.families import Family
from supernet.views import View


@dataclass(frozen=True)
class RoundToBits:
    """The nearest of 2^bits - 1 equally spaced values."""

    bits: int

    def __call__(self, weight):
        step = weight.detach().abs().amax() / (2 ** (self.bits - 1) - 1)
        return (weight / step).round() * step


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


class Blocks(nn.Module):
    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


SPACE = SearchSpace(
    {
        "depth": (2, 3),
        "width": (4, 8),
        "blocks.1.bits": (2, 4, 8),
        "blocks.1.source": ("own", "first"),
        "blocks.2.bits": Choice((2, 3, 4, 8), when={"depth": (3,)}),
    }
)


def build(arch, drop_rate=0.0, drop_path_rate=0.0):
    return Blocks(arch["depth"], arch["width"])


def views(arch):
    """Those of the second block, whose weight may be the first one's, and of the third; both are rounded."""
    transforms = [
        RoundToBits(bits) if bits < 8 else None for bits in (arch["blocks.1.bits"], arch.get("blocks.2.bits", 8))
    ]
    source = "blocks.0.conv.weight" if arch["blocks.1.source"] == "first" else None
    found = {"blocks.1.conv.weight": View(source, transforms[0]), "blocks.2.conv.weight": View(None, transforms[1])}
    return found if arch["depth"] == 3 else {"blocks.1.conv.weight": found["blocks.1.conv.weight"]}


def pieces(arch):
    return {f"blocks.{index}": arch["width"] for index in range(arch["depth"])} | {
        "stem": arch["width"],
        "head": arch["width"],
    }


@pytest.fixture(scope="module", params=[None, pieces], ids=["built", "assembled"])
def family(request):
    return Family(SPACE, build, num_classes=3, input_size=8, views=views, pieces=request.param)


@pytest.fixture(scope="module")
def net(family):
    return family.supernet()


ARCHS = [
    SPACE.validate(
        {"depth": depth, "width": width, "blocks.1.bits": bits, "blocks.1.source": source, "blocks.2.bits": 4}
    )
    for depth in (3, 2)
    for source in ("own", "first")
    for bits in (2, 4, 8)
    for width in (4, 8)
]


def images(resolution, count=6):
    calibration, evaluation = torch.randn(2, count, 3, 8, 8, generator=torch.Generator().manual_seed(resolution))
    return trie.Batches(list(calibration.split(4)), list(evaluation.split(4)))


def naive(net, arch):
    batches = images(8)
    model = calibrated(net, arch, batches.calibration)
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in batches.evaluation])


@pytest.mark.parametrize("limit_bytes", [0, 10**8])
def test_logits_are_those_of_the_extracted_subnets(net, limit_bytes):
    remembered = trie.Remembered(limit_bytes)
    for archs in (ARCHS[::2], ARCHS):  # the second time, some beginnings are remembered
        logits = dict(trie.outputs(net, archs, images, lambda arch: 8, remembered, chains(net)))
        for index, arch in enumerate(archs):
            assert torch.equal(logits[index], naive(net, arch))
    different = {tuple(output.flatten().tolist()) for output in logits.values()}
    assert len(different) == len(ARCHS)


def test_pieces_are_told_apart_by_what_is_made_of_their_weights(net):
    first, *others = (SPACE.validate(dict(ARCHS[0]) | {"blocks.1.bits": bits}) for bits in (2, 4, 8))
    keys = [[piece.key for piece in cut(net.skeleton(arch), None, net.views(arch))] for arch in (first, *others)]
    assert all(len(chain) == len(keys[0]) for chain in keys)
    different = [index for index, own in enumerate(zip(*keys)) if len(set(own)) == 3]
    same = [index for index, own in enumerate(zip(*keys)) if len(set(own)) == 1]
    assert len(different) == 1
    assert len(different) + len(same) == len(keys[0])


def test_chains_know_which_choices_a_view_depends_on(net):
    dependence = Dependence(SPACE, net.skeleton, views=net.views)
    assert dependence.explains()
    for arch in ARCHS:
        assert [piece.key for piece in dependence.chain(arch)] == [
            p.key for p in cut(net.skeleton(arch), None, net.views(arch))
        ]


def test_what_a_block_depends_on_includes_its_bits_and_its_source(family):
    dependence = Dependence.of_family(family, SPACE)
    first, second = dependence.scopes(["blocks.0", "blocks.1"])
    assert "blocks.1.bits" not in first
    assert {"blocks.1.bits", "blocks.1.source"} <= second
    dependence.check(["blocks.0", "blocks.1"], [first, second])


def test_a_layer_that_is_used_in_several_pieces_has_the_statistics_of_the_extracted_subnet():
    class Repeating(Blocks):
        def __init__(self, depth: int, width: int) -> None:
            super().__init__(1, width)
            self.blocks = nn.Sequential(*[Block(width)] * depth)

    space = SearchSpace({"depth": (1, 2, 3), "width": (4, 8)})
    net = Supernet(space, lambda arch: Repeating(arch["depth"], arch["width"]))
    archs = list(space)
    logits = dict(trie.outputs(net, archs, images, lambda arch: 8))
    for index, arch in enumerate(archs):
        assert torch.equal(logits[index], naive(net, arch))
