"""The traversal over blocks against brute force."""

import itertools

import numpy as np
import pytest

from search.blockwise import traversal
from search.blockwise.traversal import RatedBlocks, combinations


def random_case(generator, sizes, costs, tightness):
    """RatedBlocks whose better paths cost more, as a rule."""
    prices = [generator.gamma(2, size=(size, costs)) for size in sizes]
    losses = [1 / (1 + price.sum(axis=1)) + 0.3 * generator.random(len(price)) for price in prices]
    return RatedBlocks(losses, prices, tightness * sum(price.mean(axis=0) for price in prices))


def brute_force(cases):
    """All admissible choices with their losses, the least first."""
    found = []
    for index, case in enumerate(cases):
        for paths in itertools.product(*(range(len(losses)) for losses in case.losses)):
            spent = sum(costs[path] for costs, path in zip(case.costs, paths))
            if (spent <= case.budget).all():
                found.append((sum(losses[path] for losses, path in zip(case.losses, paths)), index, paths))
    return sorted(found)


@pytest.mark.parametrize(("costs", "tightness"), [(0, 1.0), (1, 0.7), (1, 1.2), (2, 1.0)])
@pytest.mark.parametrize("seed", range(3))
def test_every_combination_comes_in_order(costs, tightness, seed):
    generator = np.random.default_rng(seed)
    cases = [random_case(generator, sizes, costs, tightness) for sizes in ((4, 6, 5), (7,), (3, 2, 2, 5))]
    expected = brute_force(cases)
    found = list(combinations(cases))
    assert {(c.case, c.paths) for c in found} == {(index, paths) for _, index, paths in expected}
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose([c.loss for c in found], [loss for loss, _, _ in expected], rtol=1e-12)


@pytest.mark.parametrize("points", [1, 3])
def test_a_coarse_bound_is_still_exact(monkeypatch, points):
    monkeypatch.setattr(traversal, "POINTS", points)
    monkeypatch.setattr(traversal, "BLOCK_POINTS", points)
    for seed in range(5):
        case = random_case(np.random.default_rng(seed), (9, 8, 9, 7), 1, 0.8)
        assert next(combinations([case])).paths == brute_force([case])[0][2]


def test_equal_losses_and_integer_costs():
    case = RatedBlocks([np.zeros(3), np.zeros(3)], [np.array([[1], [2], [3]])] * 2, np.array([4]))
    assert {c.paths for c in combinations([case])} == {(a, b) for a in range(3) for b in range(3) if a + b + 2 <= 4}


def test_a_budget_is_met_whatever_the_rounding_of_sums():
    case = RatedBlocks([np.zeros(1), np.zeros(1)], [np.array([[0.1]]), np.array([[0.2]])], np.array([0.3]))
    assert 0.1 + 0.2 > 0.3
    assert [c.paths for c in combinations([case])] == [(0, 0)]


def test_a_budget_that_nothing_meets_gives_nothing():
    assert list(combinations([RatedBlocks([np.ones(2)] * 2, [np.ones((2, 1))] * 2, np.array([1.9]))])) == []


def test_blocks_of_thousands_of_paths():
    """The published scale; a bound that did not prune would take hours."""
    case = random_case(np.random.default_rng(0), [5000] * 6, 1, 0.6)
    best = next(combinations([case]))
    assert sum(costs[path] for costs, path in zip(case.costs, best.paths)) <= case.budget
    # no single exchange improves it: a path of one block that costs no more than what is left, with a smaller loss
    spare = case.budget - sum(costs[path] for costs, path in zip(case.costs, best.paths))
    for losses, costs, path in zip(case.losses, case.costs, best.paths):
        assert not ((costs[:, 0] <= costs[path, 0] + spare) & (losses < losses[path])).any()


def test_no_paths_are_an_error():
    with pytest.raises(ValueError, match=r"no paths to choose from: blocks have \[\] paths"):
        next(combinations([RatedBlocks([], [], np.zeros(1))]))
    with pytest.raises(ValueError, match=r"blocks have \[2, 0\] paths"):
        next(combinations([RatedBlocks([np.ones(2), np.ones(0)], [np.ones((2, 1)), np.ones((0, 1))], np.ones(1))]))
