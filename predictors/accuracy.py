"""`AccuracyPredictor`: the score of an architecture, from the scores of others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import kendalltau
from sklearn.linear_model import BayesianRidge

from supernet.space import INACTIVE, Arch, SearchSpace

# n architectures, c choices, v values of all choices


class AccuracyPredictor:
    """Bayesian ridge regression of a score on the values of all choices; higher is better, as in the score.

    score(arch) = b + sum of w[choice, value] over the active choices, w ~ N(0, 1 / lambda), noise ~ N(0, 1 / alpha),
    with lambda and alpha by maximum likelihood (MacKay 1992). Milliseconds to fit on a thousand evaluations.
    """

    MINIMUM = 10  # evaluations

    def __init__(self, space: SearchSpace, archs: Sequence[Arch], scores: Sequence[float]) -> None:
        """Fit; ValueError if there are fewer than `MINIMUM` evaluations or a score is not finite."""
        values = np.asarray(scores, dtype=float)
        if len(archs) != len(values):
            raise ValueError(f"{len(archs)} architectures but {len(values)} scores")
        if len(values) < self.MINIMUM:
            raise ValueError(f"a predictor needs at least {self.MINIMUM} evaluations, not {len(values)}")
        if not np.isfinite(values).all():
            raise ValueError(f"a score is {values[~np.isfinite(values)][0]}; leave failed evaluations out")
        self.space = space
        self._model = BayesianRidge().fit(_indicators(space, archs), values)

    def __call__(self, archs: Sequence[Arch]) -> np.ndarray:
        """Predicted scores [n]."""
        return self._model.predict(_indicators(self.space, archs)) if len(archs) else np.empty(0)


def rank_correlation(predicted: Sequence[float], actual: Sequence[float]) -> float:
    """Kendall's tau-b, from -1 to 1; NaN if either is constant or has fewer than 2 values."""
    if len(predicted) < 2:
        return float("nan")
    return float(kendalltau(predicted, actual).statistic)


def _indicators(space: SearchSpace, archs: Sequence[Arch]) -> np.ndarray:
    """[n, v]: 1 where an architecture has a value, 0 where it has another or the choice is inactive."""
    codes = space.encode(archs)
    columns = [
        codes[:, [column]] == np.arange(len(choice.values)) for column, choice in enumerate(space.choices.values())
    ]
    assert INACTIVE < 0, "no value has the code of an inactive choice"
    return np.concatenate(columns, axis=1).astype(float)
