"""Chains of pieces put together from few subnets, against cutting each subnet."""

import dataclasses
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from distill.blockwise import relative_deviation
from search.blockwise.blocks import Block
from search.blockwise.dna import rate_paths
from search.blockwise.features import Feature
from search.prefix import trie
from search.prefix.dependence import Dependence, chains
from search.prefix.pieces import cut
from supernet import Choice, SearchSpace, Supernet
from supernet.calibration import calibrate
from supernet.families import FAMILIES


@pytest.mark.parametrize("name", ["nasbench_macro", "mobilenet_v3_micro"])
def test_chains_are_those_of_subnets_that_are_built(name):
    net = FAMILIES[name](num_classes=10).supernet().eval()
    pieces_of = chains(net)
    generator = np.random.default_rng(1)
    for arch in (net.space.sample(generator) for _ in range(10)):
        assert [piece.key for piece in pieces_of(arch)] == [piece.key for piece in cut(net.skeleton(arch))]


def test_what_a_family_says_is_what_changing_one_choice_at_a_time_finds():
    family = FAMILIES["mobilenet_v3_micro"](num_classes=10)
    told = Dependence.of_family(family, family.space)
    found = Dependence.of_family(dataclasses.replace(family, pieces=None), family.space)
    cuts = ["blocks.0", "blocks.1.0", "blocks.2", "conv_head"]
    scopes = told.scopes(cuts)
    assert scopes == found.scopes(cuts)
    assert scopes[0] != set()
    assert "resolution" not in set().union(*scopes)


SPACE = SearchSpace(
    {
        "width": (2, 4),
        "depth": (1, 2),
        "kernel_size.1": Choice((1, 3, 5), when={"depth": (2,)}),
        "kernel_size.2": (1, 3, 5),
        "kernel_size.3": (1, 3, 5),
    }
)


def convolution(in_chs, out_chs, size):
    conv = nn.Conv2d(in_chs, out_chs, size, padding=size // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_chs), act=nn.ReLU()))


def build(arch):
    width = arch["width"]
    layers = OrderedDict(first=convolution(3, width, 3))
    if arch["depth"] == 2:
        layers["second"] = convolution(width, width, arch["kernel_size.1"])
    layers["third"] = convolution(width, 4, arch["kernel_size.2"])
    layers["last"] = convolution(4, 4, arch["kernel_size.3"])
    return nn.Sequential(layers)


def count_built(net, monkeypatch):
    """The architectures that are built from now on."""
    built = set()
    make = net.skeleton
    monkeypatch.setattr(net, "skeleton", lambda arch: built.add(arch) or make(arch))
    return built


def test_few_subnets_hold_the_pieces_of_all(monkeypatch):
    """Of 72: those that differ from the largest in one choice, those that are probed, and one more for each width and
    kernel size."""
    net = Supernet(SPACE, build).eval()
    built = count_built(net, monkeypatch)
    pieces_of = chains(net)
    probed = len(built)
    archs = list(SPACE)
    keys = [tuple(piece.key for piece in pieces_of(arch)) for arch in archs]
    assert len(set(keys)) == len(archs) == 72
    assert len(built) - probed <= 6
    assert keys == [tuple(piece.key for piece in cut(net.skeleton(arch))) for arch in archs]


def test_what_one_choice_at_a_time_does_not_show_is_built(monkeypatch):
    """The last layer follows the smaller of two choices: changing one in the largest is never seen."""
    space = SearchSpace({"a": (1, 3, 5), "b": (1, 3, 5)})
    net = Supernet(space, lambda arch: nn.Sequential(convolution(3, 2, max(arch["a"], arch["b"])))).eval()
    built = count_built(net, monkeypatch)
    pieces_of = chains(net)
    for arch in space:
        assert [piece.key for piece in pieces_of(arch)] == [piece.key for piece in cut(net.skeleton(arch))]
    assert len(built) == space.size


def test_paths_are_rated_as_one_by_one(monkeypatch):
    """The paths of a block, from few subnets, against each of them extracted, calibrated and run by itself."""
    net = Supernet(SPACE, build).eval()
    draw = torch.Generator().manual_seed(0)
    calibration, judges = torch.randn(2, 10, 3, 6, 6, generator=draw)
    target = torch.randn(10, 4, 6, 6, generator=draw)
    expected = {}
    for path in SPACE:
        model = net.extract(path)
        calibrate(model, [calibration])
        with torch.no_grad():
            expected[path] = relative_deviation(model(judges), target).item()
    built = count_built(net, monkeypatch)
    block = Block("last", Feature("y", 4, (6, 6)), frozenset(SPACE.choices), net)
    (losses,) = rate_paths(block, trie.Batches(list(calibration.split(6)), list(judges.split(6))), target)
    assert list(losses) == list(expected)
    assert losses == pytest.approx(expected, rel=1e-6)
    assert len(built) < SPACE.size / 2
