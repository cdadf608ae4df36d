"""Pareto fronts of arrays: every column is an objective, lower is better.

Points with a value that is not finite stand for failed evaluations and are in no front.
"""

from __future__ import annotations

import numpy as np

# n points, m objectives


def front(values: np.ndarray) -> np.ndarray:
    """Indices of the points [n, m] that no other dominates, by increasing first objective.

    A point dominates another if it is nowhere worse and somewhere better; equal points are all in the front.
    """
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    finite = np.flatnonzero(np.isfinite(values).all(axis=1))
    indices = finite[NonDominatedSorting().do(values[finite], only_non_dominated_front=True)]
    return indices[np.lexsort([indices, *values[indices].T[::-1]])]


def select(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` best points [n, m], best first: by front, and within a front the least crowded first.

    This is the survival of NSGA-II (Deb et al. 2002, section III), with crowding distance. Fewer than `count` if fewer
    are finite.
    """
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    finite = np.flatnonzero(np.isfinite(values).all(axis=1))
    chosen: list[np.ndarray] = []
    for members in NonDominatedSorting().do(values[finite], n_stop_if_ranked=count):
        indices = finite[np.sort(members)]
        chosen.append(indices[np.argsort(-calc_crowding_distance(values[indices]), kind="stable")])
    return np.concatenate(chosen)[:count] if chosen else finite


def hypervolume(values: np.ndarray, reference: np.ndarray) -> float:
    """The volume that the points [n, m] dominate up to `reference` [m]; higher is better.

    Points that are worse than the reference in any objective add nothing.
    """
    from pymoo.indicators.hv import HV

    inside = values[(np.isfinite(values) & (values < reference)).all(axis=1)]
    return float(HV(ref_point=np.asarray(reference, dtype=float))(inside)) if len(inside) else 0.0
