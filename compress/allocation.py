"""Which precision each layer gets under one limit on their sum: a multiple-choice knapsack, solved exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp

# L layers, O options of a layer


def allocate(
    gain: Sequence[Sequence[float]] | np.ndarray,
    cost: Sequence[Sequence[float]] | np.ndarray,
    limit: float,
    tied: Sequence[Sequence[int]] = (),
    further: Sequence[tuple[Sequence[Sequence[float]] | np.ndarray, float]] = (),
) -> list[int]:
    """The option of each layer that makes the sum of gains [L, O] largest while the sum of costs [L, O] is at most
    `limit`, and so for each of the `further` costs and their limits; layers of one group in `tied` take the same
    option.

    The exact optimum, by the mixed-integer programme of `scipy.optimize.milp`, as HAWQ-V3 chooses bits (Yao et al.,
    ICML 2021, equation 10). An option that a layer does not have has a cost of infinity.

    ValueError for unequal shapes, a gain or cost that is NaN, an index in `tied` of no layer, or a limit below the
    least sum of costs, which it names; or limits that can only be kept one by one.
    """
    gain = np.asarray(gain, float)
    costs, maxima = zip(*((np.asarray(each, float), most) for each, most in [(cost, limit), *further]))
    for each in costs:
        if gain.shape != each.shape or gain.ndim != 2 or not gain.size:
            raise ValueError(f"gains and costs are [layers, options] alike, not {gain.shape} and {each.shape}")
    if np.isnan(gain).any() or np.isnan(costs).any():
        raise ValueError("a gain or a cost is NaN")
    layers, options = gain.shape
    if wrong := [index for group in tied for index in group if not 0 <= index < layers]:
        raise ValueError(f"layer {wrong[0]} is tied to others, but layers are 0 to {layers - 1}")
    has = np.isfinite(costs).all(0)
    sums = [np.where(has, each, 0.0) for each in costs]
    one_each = np.kron(np.eye(layers), np.ones(options))
    equal = [
        np.kron(np.eye(layers)[first] - np.eye(layers)[other], np.eye(options))
        for first, *others in tied
        for other in others
    ]
    constraints = [LinearConstraint(one_each, 1, 1), *(LinearConstraint(rows, 0, 0) for rows in equal)]
    bounds = Bounds(0, has.ravel().astype(float))

    def solve(objective: np.ndarray, *limits: LinearConstraint) -> OptimizeResult:
        exactly = {"mip_rel_gap": 0}
        return milp(
            objective.ravel(), integrality=1, bounds=bounds, constraints=[*constraints, *limits], options=exactly
        )

    limits = [LinearConstraint(each.reshape(1, -1), -np.inf, most) for each, most in zip(sums, maxima)]
    found = solve(-np.where(has, gain, 0.0), *limits)
    if found.x is None:
        for each, most in zip(sums, maxima):
            least = solve(each)
            if least.x is None:
                raise ValueError("some layer, or group of tied layers, has no option")
            if least.fun > most:
                raise ValueError(f"no allocation costs at most {most:g}: the least is {least.fun:.6g}")
        raise ValueError("no allocation keeps all limits together: loosen one")
    return [int(index) for index in found.x.reshape(layers, options).argmax(1)]
