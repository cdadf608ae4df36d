"""The expected growth of the hypervolume, against brute force and hand-worked cases."""

import numpy as np
import pytest
from scipy.stats import norm

from search import pareto
from search.strategies.acquisition import expected_improvement, free_volume


@pytest.mark.parametrize("dimensions", [0, 1, 2, 3])
def test_the_free_volume_is_what_a_corner_adds_to_the_hypervolume(dimensions, numpy_generator):
    reference = np.ones(dimensions)
    points, corners = (numpy_generator.random((count, dimensions)) * 1.2 for count in (7, 30))
    if not dimensions:
        assert free_volume(corners, points, reference).tolist() == [0.0] * 30
        assert free_volume(corners, points[:0], reference).tolist() == [1.0] * 30
        return
    before = pareto.hypervolume(points, reference)
    added = [pareto.hypervolume(np.vstack([points, corner]), reference) - before for corner in corners]
    np.testing.assert_allclose(free_volume(corners, points, reference), added, atol=1e-12)


@pytest.mark.parametrize("costs", [0, 1, 2])
def test_the_expected_growth_is_the_mean_over_draws_of_the_score(costs, numpy_generator):
    front_scores, front_costs = numpy_generator.random(6) * 3, numpy_generator.random((6, costs))
    candidates = numpy_generator.random((5, costs)) * 0.5
    mean, deviation = numpy_generator.random(5) * 4 + 0.5, numpy_generator.random(5) + 0.1
    reference, worst = np.full(costs, 0.9), 0.5
    draws = norm.ppf((np.arange(2000) + 0.5) / 2000)
    whole = np.array([-worst, *reference])
    front = np.column_stack([-front_scores, front_costs])
    before = pareto.hypervolume(front, whole)
    expected = [
        np.mean([pareto.hypervolume(np.vstack([front, [-(m + s * z), *cost]]), whole) - before for z in draws])
        for m, s, cost in zip(mean, deviation, candidates)
    ]
    found = expected_improvement(mean, deviation, candidates, front_scores, front_costs, worst, reference)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert max(expected) > 0.05


def test_expected_improvement_by_hand():
    nothing = np.empty((1, 0))
    found = expected_improvement(np.array([1.0]), np.array([2.0]), nothing, np.array([1.0]), nothing, -9.0, np.empty(0))
    assert found == pytest.approx([2 * norm.pdf(0)])
    # one cost: certain to score 3 at a cost of 0.5, where the front has 2 at 0.25 and the reference is 1
    found = expected_improvement(
        np.array([3.0]), np.array([1e-9]), np.array([[0.5]]), np.array([2.0]), np.array([[0.25]]), 0.0, np.ones(1)
    )
    assert found == pytest.approx([(3 - 2) * (1 - 0.5)])


def test_growth_is_counted_on_the_scale_that_unwarp_leads_to():
    """Of scores 1 and 2 on the front, which stand for 10 and 40; above 2 all rises by 30 a step."""
    front_scores, front_costs = np.array([1.0, 2.0]), np.array([[0.2], [0.4]])

    def unwarp(score):
        return np.interp(score, [0, 1, 2, 9], [0, 10, 40, 250])

    found = expected_improvement(
        np.array([1.5, 3.0]), np.full(2, 1e-9), np.full((2, 1), 0.3), front_scores, front_costs, 0.0, np.ones(1), unwarp
    )
    assert found == pytest.approx([(25 - 10) * (0.4 - 0.3), (40 - 10) * (0.4 - 0.3) + (70 - 40) * (1 - 0.3)])
