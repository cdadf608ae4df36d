"""`ScorePosterior`: the scores of architectures from few evaluations, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from predictors.regression import additive, matern
from predictors.regression.embedding import Embedding, embedding
from predictors.regression.warp import Warp
from predictors.transfer import OWN_SCALES, own_components
from supernet.space import Arch, SearchSpace

# n architectures, m evaluations, v values of all choices, f features

MINIMUM = 8  # evaluations
MOST = 1000  # evaluations, the latest, that are learnt from


class Points:
    """Architectures as regressors see them: indicators of their values and `features` [n, f], such as their costs, any
    finite numbers."""

    def __init__(self, space: SearchSpace, archs: Sequence[Arch], features: np.ndarray) -> None:
        self.embedding = embedding(space)
        self.indicators = self.embedding.indicators(space.encode(archs))
        self.features = np.arcsinh(features)  # a logarithm of large numbers, and defined for all


@dataclass(frozen=True)
class ScorePosterior:
    """The posterior of a score, on the scale of `warp`, on which it is Gaussian.

    `fit` chooses of two regressors the one that gives evaluations, each predicted from all others, the greater density:

    - `additive`: the effects of all values add up (`regression.additive`, an average over many priors);
    - `matern`: they interact as well, and the features count (`regression.matern`).
    """

    warp: Warp
    kind: Literal["additive", "matern"]
    embedding: Embedding
    indicators: np.ndarray  # [m, v] of the evaluated
    features: np.ndarray  # [m, f], standardised
    centre: np.ndarray  # [f]: mean of the features, and
    spread: np.ndarray  # [f]: their standard deviation, by which they are standardised
    targets: np.ndarray  # [m], warped scores
    log_parameters: np.ndarray  # of `matern`
    model: additive.Additive | matern.Matern

    @classmethod
    def fit(cls, points: Points, scores: Sequence[float]) -> ScorePosterior:
        """From evaluated architectures and their scores; ValueError for fewer than `MINIMUM` or one not finite."""
        scores = np.asarray(scores, dtype=float)
        if len(points.indicators) != len(scores):
            raise ValueError(f"{len(points.indicators)} architectures but {len(scores)} scores")
        if len(scores) < MINIMUM:
            raise ValueError(f"a posterior needs at least {MINIMUM} evaluations, not {len(scores)}")
        if not np.isfinite(scores).all():
            raise ValueError(f"a score is {scores[~np.isfinite(scores)][0]}; leave failed evaluations out")
        indicators, features = points.indicators[-MOST:], points.features[-MOST:]
        warp = Warp.fit(scores[-MOST:])
        targets = warp(scores[-MOST:])
        centre, spread = features.mean(axis=0), features.std(axis=0)
        spread = np.where(spread > 0, spread, 1.0)
        features = (features - centre) / spread
        views = _views(points.embedding, indicators, features)
        log_parameters = matern.maximise_evidence(views, targets)
        models = {
            "additive": _additive(points.embedding, indicators, targets),
            "matern": matern.condition(views, targets, log_parameters),
        }
        kind = max(models, key=lambda name: left_out_density(models[name], targets))
        fitted = (indicators, features, centre, spread, targets, log_parameters)
        return cls(warp, kind, points.embedding, *fitted, models[kind])

    def predict(self, points: Points) -> tuple[np.ndarray, np.ndarray]:
        """Means [n] and standard deviations [n] of warped scores, without the noise of an evaluation."""
        if self.kind == "additive":
            mean, variance = self.model.predict(points.indicators)
            return mean, np.sqrt(np.maximum(variance - self.model.noise, matern.LEAST_VARIANCE))
        features = (points.features - self.centre) / self.spread
        mean, variance = self.model.predict(_views(self.embedding, points.indicators, features))
        return mean, np.sqrt(variance)

    @property
    def noise(self) -> float:
        """Variance of an evaluation about the warped score."""
        return self.model.noise if self.kind == "additive" else float(np.exp(self.log_parameters[-1]))

    def believing(self, points: Points, warped: np.ndarray) -> ScorePosterior:
        """The posterior as if `points` had been evaluated with these warped scores; all but the data stays."""
        indicators = np.concatenate([self.indicators, points.indicators])
        features = np.concatenate([self.features, (points.features - self.centre) / self.spread])
        targets = np.concatenate([self.targets, warped])
        if self.kind == "additive":
            model = _additive(self.embedding, indicators, targets)
        else:
            model = matern.condition(_views(self.embedding, indicators, features), targets, self.log_parameters)
        fitted = (indicators, features, self.centre, self.spread, targets, self.log_parameters)
        return ScorePosterior(self.warp, self.kind, self.embedding, *fitted, model)


def left_out_density(model: additive.Additive | matern.Matern, targets: np.ndarray) -> float:
    """The sum of the logarithms of the densities of `targets` [m], each predicted from all others."""
    variance = model.left_out_variance
    return float(-0.5 * ((targets - model.left_out) ** 2 / variance + np.log(2 * np.pi * variance)).sum())


def _additive(points: Embedding, indicators: np.ndarray, targets: np.ndarray) -> additive.Additive:
    return additive.fit(indicators, targets, points.centre, own_components(points), OWN_SCALES)


def _views(points: Embedding, indicators: np.ndarray, features: np.ndarray) -> list[np.ndarray]:
    centred = indicators - points.centre
    return [*(centred @ table for table in points.tables if table.shape[1]), *features.T[:, :, None]]
