"""An ensemble of scores, made by what a few networks are worth that were trained alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from predictors.accuracy import rank_correlation
from predictors.posterior import MINIMUM, Points, ScorePosterior
from search.evaluator import evaluate_here, in_order
from search.history import Evaluation, History
from search.loop import ask_and_tell
from search.problem import Problem, Score, placed
from search.strategies.given_order import GivenOrder
from search.untrained.zero_cost import WORST
from supernet.artifacts.atomic import write_json
from supernet.space import Arch, SearchSpace

logger = logging.getLogger(__name__)

# n architectures, m trained ones, s members

TRAINED = "trained_alone"
"""What the networks that were trained alone are worth, beside the members' names in their history."""


@dataclass(frozen=True)
class EnsembleConfig:
    """Of what an ensemble consists, and what it learns from."""

    members: tuple[str, ...] = ("accuracy", "naswot", "synflow", "jacob_cov", "macs")
    """Scores: the supernet's accuracy, and any of search.scores.untrained.NAMES."""
    trained: int = 24
    """Random architectures that are trained alone, from which it learns what the members are worth."""
    epochs: int = 10
    """Epochs of each of these trainings, otherwise as the run was trained."""

    def __post_init__(self):
        if not self.members or len(set(self.members)) < len(self.members):
            raise ValueError(f"members of an ensemble are one or more scores, each once, not {', '.join(self.members)}")
        if self.trained < MINIMUM:
            raise ValueError(f"an ensemble learns from at least {MINIMUM} trained architectures, not {self.trained}")
        if self.epochs < 1:
            raise ValueError(f"an architecture that is trained alone takes at least 1 epoch, not {self.epochs}")


@dataclass(frozen=True)
class Ensemble:
    """What an architecture is worth when it is trained alone, by its choices and by several scores of it.

    A Gaussian process of both, learnt from few trained architectures (`predictors.posterior.ScorePosterior`): it weighs
    the scores against each other and against the effects of the choices by what explains the trained ones best. Where a
    score could not be computed (`search.untrained.zero_cost.WORST`), it counts as the lowest of the trained ones.
    """

    space: SearchSpace
    posterior: ScorePosterior
    lowest: np.ndarray  # [s]

    @classmethod
    def fit(cls, space: SearchSpace, archs: Sequence[Arch], scores: np.ndarray, worth: Sequence[float]) -> Ensemble:
        """From trained architectures, their scores [m, s] and what they are worth [m], higher is better.

        ValueError for fewer than `predictors.posterior.MINIMUM` or a number that is not finite.
        """
        scores = np.asarray(scores, dtype=float)
        if not np.isfinite(scores).all():
            raise ValueError(f"a score is {scores[~np.isfinite(scores)][0]}; leave failed architectures out")
        lowest = np.where(scores > WORST, scores, np.inf).min(axis=0, initial=np.inf)
        lowest = np.where(np.isfinite(lowest), lowest, 0.0)
        points = Points(space, archs, np.where(scores > WORST, scores, lowest))
        return cls(space, ScorePosterior.fit(points, worth), lowest)

    def __call__(self, archs: Sequence[Arch], scores: np.ndarray) -> np.ndarray:
        """What architectures with the scores [n, s] are predicted to be worth [n]."""
        points = Points(self.space, archs, np.where(scores > WORST, scores, self.lowest))
        return self.posterior.warp.inverse(self.posterior.predict(points)[0])

    @property
    def left_out(self) -> np.ndarray:
        """The prediction [m] of each trained architecture from all others, with the hyper-parameters of all."""
        return self.posterior.warp.inverse(self.posterior.model.left_out)


class EnsembleScore:
    """The score "what the architecture is predicted to be worth when it is trained alone" of an `Ensemble` of
    `members`, higher is better, in the unit of `alone`.

    In `prepare`, or when it is first needed, each of `archs` is scored by all members and by `alone`, and the ensemble
    is fitted. What was found is in `trained.jsonl` in `directory` as soon as it is known, and not computed again; it is
    refused there if it is of other `settings` (JSON). `ensemble.json` beside it says how well the members and the
    ensemble rank the trained architectures. Those whose scoring or training fails are left out; ValueError if fewer
    than `predictors.posterior.MINIMUM` remain.
    """

    def __init__(
        self,
        space: SearchSpace,
        members: Mapping[str, Score],
        alone: Score,
        archs: Sequence[Arch],
        directory: Path,
        settings: Mapping[str, object],
    ) -> None:
        self._space, self._members, self._archs = space, dict(members), list(archs)
        self._alone: Score | None = alone  # until the ensemble is fitted
        self._directory, self._settings = directory, dict(settings)
        self.ensemble: Ensemble | None = None  # once it is

    def to(self, device: torch.device | str) -> EnsembleScore:
        """Puts what the members and the trainings compute with on `device`, in place."""
        self._members = {name: placed(score, device) for name, score in self._members.items()}
        self._alone = self._alone and placed(self._alone, device)
        return self

    def prepare(self) -> None:
        """Fit the ensemble, unless it is fitted."""
        if self.ensemble is not None:
            return
        found = [evaluation for evaluation in self._evaluated() if not evaluation.error]
        if len(found) < MINIMUM:
            raise ValueError(
                f"only {len(found)} of {len(self._archs)} architectures could be scored and trained, and an ensemble "
                f"learns from {MINIMUM} or more: {self._directory / 'trained.jsonl'} says why"
            )
        scores = np.array([self._row(evaluation.scores) for evaluation in found])
        worth = [evaluation.scores[TRAINED] for evaluation in found]
        self.ensemble = Ensemble.fit(self._space, [evaluation.arch for evaluation in found], scores, worth)
        self._alone = None
        self._report(scores, worth)

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        """The values in the order of `archs`; raises what scoring one of them raises."""
        return in_order(self.each(archs))

    def each(self, archs: Sequence[Arch]) -> Iterator[tuple[int, float | Exception]]:
        """The index and the value of each architecture, or what scoring it raised, as soon as it is known."""
        self.prepare()
        for found in evaluate_here(self._members)(archs):
            if found.error:
                yield found.index, RuntimeError(found.error)
            else:
                row = np.array([self._row(found.scores)])
                yield found.index, float(self.ensemble([archs[found.index]], row)[0])

    def _row(self, scores: Mapping[str, float]) -> list[float]:
        return [scores[name] for name in self._members]

    def _evaluated(self) -> list[Evaluation]:
        """The architectures to learn from, as the members and the trainings see them."""
        scores = {**self._members, TRAINED: self._alone}
        problem = Problem(self._space, list(scores))
        with History(self._directory / "trained.jsonl", problem.describe() | self._settings, resume=True) as record:
            record.past = {arch: evaluation for arch, evaluation in record.past.items() if not evaluation.error}
            return ask_and_tell(
                problem,
                GivenOrder(iter(self._archs), 1),  # so that each is written when its training ends
                evaluate_here(scores),
                len(self._archs),
                history=record,
                on_evaluation=self._log,
            ).evaluations

    def _log(self, evaluation: Evaluation, count: int) -> None:
        found = evaluation.error or f"{evaluation.scores[TRAINED]:.4f}"
        logger.info("trained alone, %d of %d: %s", count, len(self._archs), found)

    def _report(self, scores: np.ndarray, worth: Sequence[float]) -> None:
        """Write how well members rank the trained architectures, and the ensemble each of them from the others."""
        content = {
            "trained": len(worth),
            "kendall": {name: rank_correlation(own, worth) for name, own in zip(self._members, scores.T)},
            "kendall_left_out": rank_correlation(self.ensemble.left_out, worth),
        }
        write_json(self._directory / "ensemble.json", content)
        logger.info(
            "Kendall's tau with %d trained networks: %s; of the ensemble, each predicted from the others, %.2f",
            len(worth),
            ", ".join(f"{name} {value:.2f}" for name, value in content["kendall"].items()),
            content["kendall_left_out"],
        )
