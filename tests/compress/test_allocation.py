"""The allocation of precisions against enumeration."""

from itertools import product

import numpy as np
import pytest

from compress.allocation import allocate


def enumerated(gain, cost, limit, tied):
    """The largest sum of gains, by looking at every allocation."""
    layers, options = gain.shape
    sums = [
        sum(gain[layer, option] for layer, option in enumerate(choice))
        for choice in product(range(options), repeat=layers)
        if all(len({choice[layer] for layer in group}) == 1 for group in tied)
        and sum(cost[layer, option] for layer, option in enumerate(choice)) <= limit
    ]
    return max(sums, default=None)


@pytest.mark.parametrize("seed", range(20))
def test_the_allocation_is_the_best_of_all(seed):
    generator = np.random.default_rng(seed)
    gain, cost = generator.normal(size=(6, 3)), generator.uniform(0.1, 1, size=(6, 3))
    tied = [[], [(0, 2), (3, 4, 5)]][seed % 2]
    limit = generator.uniform(1.5, 4)
    best = enumerated(gain, cost, limit, tied)
    if best is None:
        with pytest.raises(ValueError, match="no allocation costs at most"):
            allocate(gain, cost, limit, tied)
        return
    chosen = allocate(gain, cost, limit, tied)
    rows = np.arange(6)
    assert gain[rows, chosen].sum() == pytest.approx(best)
    assert cost[rows, chosen].sum() <= limit + 1e-9
    assert all(len({chosen[layer] for layer in group}) == 1 for group in tied)


@pytest.mark.parametrize("seed", range(10))
def test_all_limits_are_kept_together(seed):
    generator = np.random.default_rng(seed)
    gain, first, second = generator.normal(size=(5, 3)), *generator.uniform(0.1, 1, size=(2, 5, 3))
    rows = np.arange(5)
    sums = [
        gain[rows, choice].sum()
        for choice in map(list, product(range(3), repeat=5))
        if first[rows, choice].sum() <= 2.8 and second[rows, choice].sum() <= 2.6
    ]
    chosen = allocate(gain, first, 2.8, further=[(second, 2.6)])
    assert gain[rows, chosen].sum() == pytest.approx(max(sums))


def test_an_option_that_a_layer_does_not_have_is_not_taken():
    assert allocate([[0, 9], [0, 1]], [[1, np.inf], [1, 2]], limit=3) == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1, 2]], [[1]], 1), r"\(1, 2\) and \(1, 1\)"),
        (([[np.nan]], [[1]], 1), "is NaN"),
        (([[1, 2]], [[3, 4]], 2), "no allocation costs at most 2: the least is 3"),
        (([[1], [1]], [[1], [1]], 2, [(0, 2)]), "layer 2 is tied to others, but layers are 0 to 1"),
        (([[1], [1]], [[np.inf], [1]], 2), "no option"),
        (([[1, 2]], [[1, 2]], 1, (), [([[2, 1]], 1)]), "all limits together"),
    ],
)
def test_what_cannot_be_allocated_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        allocate(*arguments)
