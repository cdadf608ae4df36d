"""Evolution that screens many candidates with an accuracy predictor and evaluates the most promising."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from predictors.accuracy import AccuracyPredictor, rank_correlation
from search import pareto
from search.problem import Problem
from search.strategies.evolution import Evolution, EvolutionConfig
from search.strategies.proposals import Proposals
from supernet.space import Arch

# n architectures, s scores


class ScreenedEvolution:
    """`ask` for architectures that a predictor of the scores finds best, `tell` their scores.

    The first generation is random. Before each further one, a predictor of each score is fitted to all evaluations and
    `Evolution` runs on predicted scores for `rounds` generations, starting from the best architectures evaluated. Of
    all architectures that it proposes and that are new, the best by predicted front and crowding are asked for. Only
    evaluated scores enter a result.

    `notes` holds, for every generation but the first, the `rank_correlation`: Kendall's tau between the predictions
    that chose its members and their evaluations, the mean over scores. It says how well the predictor ranks candidates
    it has not seen. NaN if there is none, as for a generation that was not screened.
    """

    def __init__(
        self, problem: Problem, seed: int = 0, config: EvolutionConfig | None = None, rounds: int = 10
    ) -> None:
        self.problem = problem
        self.config = config or EvolutionConfig()
        self.rounds = rounds
        self.notes: dict[str, float] = {}
        self._archs: list[Arch] = []
        self._scores = np.empty((0, len(problem.scores)))
        self._predicted: dict[Arch, np.ndarray] = {}
        self._proposals = Proposals(problem)
        self._generator = np.random.default_rng(seed)

    def ask(self) -> list[Arch]:
        """The next generation. Smaller than asked for, or empty, when few or no new architectures can be found."""
        count = self.config.offspring or self.config.population
        evaluated = np.isfinite(self._scores).all(axis=1)
        if evaluated.sum() < AccuracyPredictor.MINIMUM:
            self._predicted = {}
            return self._proposals.sample(self.config.population, self._generator)
        known = [arch for arch, ok in zip(self._archs, evaluated) if ok]
        predictors = [AccuracyPredictor(self.problem.space, known, column) for column in self._scores[evaluated].T]
        evolution = Evolution(self.problem, int(self._generator.integers(2**32)), self.config)
        evolution.tell(known, self._scores[evaluated])
        candidates: dict[Arch, np.ndarray] = {}
        for _ in range(self.rounds):
            archs = evolution.ask()
            if not archs:
                break
            predicted = np.stack([predictor(archs) for predictor in predictors], axis=1)
            evolution.tell(archs, predicted)
            candidates |= zip(archs, predicted)
        if not candidates:
            return []
        archs = list(candidates)
        values = self.problem.values(np.array(list(candidates.values())), self.problem.price(archs))
        ranked = [archs[index] for index in pareto.select(values, len(archs))]
        chosen = self._proposals.new(ranked, count)
        self._predicted = {arch: candidates[arch] for arch in chosen}
        return chosen or self._proposals.sample(count, self._generator)

    def tell(self, archs: Sequence[Arch], scores: np.ndarray) -> None:
        """The scores [n, s] of architectures, NaN for failed ones, which teach the predictor nothing."""
        self._archs += archs
        self._scores = np.concatenate([self._scores, scores])
        if len(self._archs) == len(archs):
            return
        finite = np.isfinite(scores).all(axis=1)
        screened = [index for index, arch in enumerate(archs) if arch in self._predicted and finite[index]]
        predicted = np.array([self._predicted[archs[index]] for index in screened]).reshape(-1, scores.shape[1])
        correlations = [rank_correlation(*pair) for pair in zip(predicted.T, scores[screened].T)]
        self.notes = {"rank_correlation": float(np.mean(correlations))}
