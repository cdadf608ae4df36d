"""What an evaluation is worth: the hypervolume that it is expected to add."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import norm

# n candidates, c costs, k members of the front, r costs at a recursion


def expected_improvement(
    mean: np.ndarray,
    deviation: np.ndarray,
    costs: np.ndarray,
    front_scores: np.ndarray,
    front_costs: np.ndarray,
    worst: float,
    reference: np.ndarray,
    unwarp: Callable[[np.ndarray], np.ndarray] = lambda score: score,
) -> np.ndarray:
    """The expected growth [n] of the hypervolume by candidates of known costs and a normal score.

    The score Y of a candidate has this `mean` [n] and `deviation` [n] and is the higher the better; its `costs` [n, c]
    are the lower the better. The hypervolume is that of the front, [k] and [k, c], from the score `worst` up and from
    the costs `reference` [c] down. A candidate adds, at every score t between `worst` and Y, the volume A(t) of costs
    between its own and the reference that no member of the front with a score of at least t dominates, so that

        E[growth] = integral over t > worst of P(Y > t) A(t) dt = sum_j A_j (H(t_j) - H(t_{j-1})),
        H(t) = E[max(Y - t, 0)] = s (phi(z) + z Phi(z)),    z = (mean - t) / s,

    with t_1 > t_2 > ... the front's scores and at last `worst`, t_0 infinite, and A_j the volume that the members up
    to j - 1 leave. Exact for any number of costs: without any, A_1 = 1 and A_2 = 0, which is the expected improvement
    of Jones et al. (1998); with one, the costs' integral is a staircase.

    `unwarp` takes scores to the scale on which hypervolume is meant; it is increasing, and taken to be linear between
    members of the front, and above the best.
    """
    order = np.argsort(-front_scores, kind="stable")
    members = front_costs[order]
    levels = np.maximum(np.append(front_scores[order], worst), worst)
    expected = _expected_excess(mean, deviation, levels)  # [k + 1, n]
    heights = unwarp(np.append(levels[0] + 1e-3, levels))
    steps = np.append(1e-3, -np.diff(levels))
    slopes = np.divide(-np.diff(heights), steps, out=np.zeros(len(steps)), where=steps > 0)
    growth = np.zeros(len(mean))
    for index, slope in enumerate(slopes):
        if slope > 0:
            above = expected[index - 1] if index else 0.0
            growth += slope * (expected[index] - above) * free_volume(costs, members[:index], reference)
    return growth


def free_volume(corners: np.ndarray, points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The volume [n] between each of `corners` [n, r] and `reference` [r] that none of `points` [k, r] dominates.

    Slab by slab along the first cost: in the one from a point to the next, the points before take from the others.
    """
    if not len(reference):
        return np.full(len(corners), float(len(points) == 0))
    if len(reference) == 1:
        return np.maximum(points[:, 0].min(initial=reference[0]) - corners[:, 0], 0.0)
    points = points[np.argsort(points[:, 0], kind="stable")]
    edges = np.concatenate([[-np.inf], points[:, 0], [np.inf]])
    volume = np.zeros(len(corners))
    for index in range(len(points) + 1):
        width = np.minimum(edges[index + 1], reference[0]) - np.maximum(edges[index], corners[:, 0])
        if (width > 0).any():
            volume += np.maximum(width, 0) * free_volume(corners[:, 1:], points[:index, 1:], reference[1:])
    return volume


def _expected_excess(mean: np.ndarray, deviation: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """E[max(Y - t, 0)] [k, n] for the levels t [k]."""
    z = (mean - levels[:, None]) / deviation
    return deviation * (norm.pdf(z) + z * norm.cdf(z))
