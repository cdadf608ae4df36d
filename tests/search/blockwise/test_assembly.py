"""Architectures from rated blocks whose costs are no sums."""

import itertools

import numpy as np
import pytest

from search.blockwise.assembly import assemble
from search.blockwise.blocks import Block
from search.problem import Problem
from supernet import SearchSpace

SPACE = SearchSpace({"a": (1, 2, 3), "b": (1, 2, 3), "c": (1, 2)})
BLOCKS = [Block(name, None, frozenset(name), None) for name in SPACE.choices]
LOSSES = [
    {block.path(arch): loss[arch[block.name]] for arch in SPACE}
    for block, loss in zip(BLOCKS, ({1: 5.0, 2: 2.0, 3: 1.0}, {1: 4.0, 2: 1.7, 3: 1.1}, {1: 0.3, 2: 0.0}))
]
ARCHS = list(SPACE)


def loss(arch):
    return sum(losses[block.path(arch)] for block, losses in zip(BLOCKS, LOSSES))


def cheaper_together(archs):
    """In part a sum; two small ones together cost less than their sum says."""
    return [10.0 + a["a"] + a["b"] + a["c"] - (0.4 if max(a["a"], a["b"]) < 3 else 0.0) for a in archs]


def dearer_together(archs):
    return [10.0 + a["a"] + a["b"] + a["c"] + (0.4 if max(a["a"], a["b"]) < 3 else 0.0) for a in archs]


def in_single_precision(archs):
    return np.float32([0.1 * a["a"] + 0.7 * a["b"] + 0.3 * a["c"] for a in archs])


@pytest.mark.parametrize("cost", [cheaper_together, dearer_together, in_single_precision])
def test_all_architectures_within_a_limit_are_found_wherever_it_lies(cost):
    """At every limit that some architecture just meets."""
    prices = dict(zip(ARCHS, map(float, cost(ARCHS))))
    for limit in set(prices.values()):
        found = list(assemble(SPACE, BLOCKS, LOSSES, Problem(SPACE, ["dna"], {"cost": cost}, {"cost": limit})))
        assert set(found) == {arch for arch in ARCHS if prices[arch] <= limit}
        assert len(set(found)) == len(found)
        losses = [loss(arch) for arch in found]
        assert all(before <= after + 1e-12 for before, after in itertools.pairwise(losses))


def test_how_far_a_cost_is_from_a_sum_is_told_of_the_better_of_two_sums(caplog):
    """At the smallest architecture, where all is within a limit that leaves room, the sum says 13 and not 12.6."""
    next(assemble(SPACE, BLOCKS, LOSSES, Problem(SPACE, ["dna"], {"cost": cheaper_together}, {"cost": 15.0})))
    assert "cost is no sum over blocks: it is up to 3.2 % off" in caplog.text
