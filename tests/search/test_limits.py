"""Descents to the least cost in spaces too large to be looked through."""

import numpy as np
import pytest

from search.limits import minimise, reachable
from search.problem import Problem
from search.strategies.proposals import Proposals
from supernet import SearchSpace
from supernet.space import Arch

SPACE = SearchSpace({f"c{index}": tuple(range(5)) for index in range(8)})


def least(cost):
    problem = Problem(SPACE, ["x"], {"cost": cost})
    return minimise(problem, lambda prices: prices[:, 0], np.random.default_rng(0))


def far(archs):
    """Falls towards 3 everywhere, one value at a time."""
    return [1.0 + sum((value - 3) ** 2 for value in arch.values()) for arch in archs]


def test_the_descent_begins_from_random_architectures_as_well():
    """Around the smallest architecture it is all uphill."""

    def cost(archs):
        return [
            50.0 if set(a.values()) == {0} else 99.0 if sum(a.values()) == 1 else c for a, c in zip(archs, far(archs))
        ]

    arch, value = least(cost)
    assert value == 1.0
    assert set(arch.values()) == {3}


def test_the_descent_begins_from_the_smallest_architecture_as_well():
    """Which is the one place of the least cost, with nothing that leads there."""

    def cost(archs):
        return [0.5 if set(a.values()) == {0} else c for a, c in zip(archs, far(archs))]

    arch, value = least(cost)
    assert value == 0.5
    assert arch == SPACE.smallest


def test_proposals_give_every_admissible_architecture_once_whatever_was_refused_before():
    space = SearchSpace({"width": tuple(range(10))})
    archs = [Arch({"width": width}) for width in range(10)]
    proposals = Proposals(Problem(space, ["x"], {"width": lambda archs: [a["width"] for a in archs]}, {"width": 6.0}))
    assert proposals.new([archs[8], archs[1], archs[1], archs[2], archs[3]], 2) == archs[1:3]
    assert proposals.new(archs[:5], 5) == [archs[0], archs[3], archs[4]]  # the third was not given before
    assert proposals.new(archs, 9) == archs[5:7]  # up to the limit itself
    assert proposals.new(archs, 9) == []


def test_where_random_architectures_are_beyond_the_limits_their_neighbours_are_walked():
    problem = Problem(SPACE, ["x"], {"far": far}, {"far": 4.0})
    archs = Proposals(problem).sample(40, np.random.default_rng(0))  # of 390,625 some 600 are within the limit
    assert len(set(archs)) == 40
    assert max(far(archs)) <= 4.0
    assert min(far(archs)) == pytest.approx(1.0)


def test_what_was_found_within_the_limits_is_not_looked_for_again():
    priced = []

    def cost(archs):
        priced.extend(archs)
        return far(archs)

    problem = Problem(SPACE, ["x"], {"far": cost}, {"far": 4.0})
    found = reachable(problem, np.random.default_rng(0))
    count = len(priced)
    assert count > 1000
    assert reachable(problem, np.random.default_rng(1)) == found
    assert len(priced) == count
    easy = Problem(SPACE, ["x"], {"far": cost}, {"far": 100.0})
    assert reachable(easy, np.random.default_rng(0)) == SPACE.smallest
    assert set(priced[count:]) == {SPACE.largest, SPACE.smallest}  # the largest for the reference
