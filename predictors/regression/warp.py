"""Scores on a scale on which they look normal: most are near the best, few are far below."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import yeojohnson, yeojohnson_llf

POWERS = (-2.0, 8.0)  # the least and the greatest power
EDGE = 1e-12  # how near the end of the range of the transformation a value may be that is taken back


@dataclass(frozen=True)
class Warp:
    """The transformation of Yeo & Johnson (2000) of standardised scores, standardised again; increasing.

    With x the standardised score it is ((1 + x)^p - 1) / p where x >= 0 and -((1 - x)^(2 - p) - 1) / (2 - p) elsewhere.
    The power 1 changes nothing.
    """

    power: float
    mean: float  # of the scores
    scale: float
    warped_mean: float  # of the transformed
    warped_scale: float

    @classmethod
    def fit(cls, scores: np.ndarray) -> Warp:
        """The transformation of greatest likelihood if transformed `scores` [n] are normal; no change of equal ones."""
        mean, scale = float(scores.mean()), float(scores.std())
        if not scale > 1e-12 * abs(mean):
            return cls(1.0, mean, 1.0, 0.0, 1.0)
        standard = (scores - mean) / scale
        power = float(minimize_scalar(lambda p: -yeojohnson_llf(p, standard), bounds=POWERS, method="bounded").x)
        warped = yeojohnson(standard, lmbda=power)
        return cls(power, mean, scale, float(warped.mean()), float(warped.std()))

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        standard = (np.asarray(scores, dtype=float) - self.mean) / self.scale
        return (yeojohnson(standard, lmbda=self.power) - self.warped_mean) / self.warped_scale

    def inverse(self, warped: np.ndarray) -> np.ndarray:
        """The scores of warped values; of values that no score has, those of the last that one has."""
        value = np.asarray(warped, dtype=float) * self.warped_scale + self.warped_mean
        above = _power_inverse(np.maximum(value, 0), self.power)
        below = -_power_inverse(np.maximum(-value, 0), 2 - self.power)
        return np.where(value >= 0, above, below) * self.scale + self.mean


def _power_inverse(value: np.ndarray, power: float) -> np.ndarray:
    """x >= 0 of ((1 + x)^power - 1) / power, or log(1 + x) of the power 0."""
    if abs(power) < EDGE:
        return np.expm1(value)
    return np.maximum(power * value + 1, EDGE) ** (1 / power) - 1
