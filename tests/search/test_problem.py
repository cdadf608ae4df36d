"""What a problem makes of scores and costs, by hand."""

import numpy as np
import pytest

from search.problem import Problem
from supernet import SearchSpace
from supernet.space import Arch

SPACE = SearchSpace({"width": (1, 2, 3, 4)})
ARCHS = [Arch({"width": width}) for width in (1, 2, 3, 4)]


def size(archs):
    return [10.0 * arch["width"] for arch in archs]


def time(archs):
    return [5.0 - arch["width"] for arch in archs]


def test_scores_are_maximised_and_costs_minimised_in_the_order_of_the_objectives():
    p = Problem(SPACE, ["a", "b"], {"size": size, "time": time}, objectives=["time", "b", "size"])
    values = p.values(np.array([[1.0, 0.5], [2.0, np.nan]]), p.price(ARCHS[1:3]))
    assert values.tolist() == [[3.0, -0.5, 20.0], [2.0, np.inf, 30.0]]


def test_an_architecture_is_admissible_up_to_every_limit_itself():
    p = Problem(SPACE, ["a"], {"size": size, "time": time}, {"size": 30.0, "time": 3.0})
    assert p.violation(p.price(ARCHS)).tolist() == [4 / 3, 1.0, 1.0, 4 / 3]
    assert Problem(SPACE, ["a"], {"size": size}).violation(np.array([[1e9]])).tolist() == [0.0]


def test_the_reference_is_what_is_given_or_else_the_limit_or_else_the_largest():
    costs = {"size": size, "time": time}
    assert Problem(SPACE, ["a"], costs).reference.tolist() == [0.0, 40.0, 1.0]
    assert Problem(SPACE, ["a"], costs, {"size": 25.0}).reference.tolist() == [0.0, 25.0, 1.0]
    given = {"size": 50.0, "a": 0.25}
    p = Problem(SPACE, ["a"], costs, {"size": 25.0}, objectives=["size", "a"], reference=given)
    assert p.reference.tolist() == [50.0, -0.25]
    # from a size of 20 to 50, as a part of 50, times from 0.25 to 0.75
    assert p.hypervolume(p.values(np.array([[0.75]]), p.price(ARCHS[1:2]))) == pytest.approx(0.6 * 0.5)


def test_a_cost_is_asked_once_for_an_admissible_architecture_and_what_is_beyond_a_limit_not_kept():
    asked = []

    def counted(archs):
        asked.extend(arch["width"] for arch in archs)
        return size(archs)

    p = Problem(SPACE, ["a"], {"size": counted}, {"size": 20.0}, reference={"size": 1.0})
    asked.clear()
    assert p.price([*ARCHS, *ARCHS[:2]]).tolist() == [[10.0], [20.0], [30.0], [40.0], [10.0], [20.0]]
    assert set(asked) == {1, 2, 3, 4}
    asked.clear()
    assert p.price(ARCHS[1::-1]).tolist() == [[20.0], [10.0]]
    assert p.price([ARCHS[3], ARCHS[0]]).tolist() == [[40.0], [10.0]]
    assert asked == [4]
    assert p.price([]).shape == (0, 1)


def test_a_cost_that_is_no_number_is_refused_by_name():
    p = Problem(SPACE, ["a"], {"size": lambda archs: [np.nan if a["width"] == 3 else 1.0 for a in archs]})
    with pytest.raises(ValueError, match=r"cost 'size' is NaN for Arch\(\{'width': 3\}\)"):
        p.price(ARCHS)
