"""Bayesian optimisation: evaluate what is expected to add most to the hypervolume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from predictors.accuracy import rank_correlation
from predictors.posterior import MINIMUM, Points, ScorePosterior
from search import pareto
from search.limits import neighbours
from search.problem import Problem
from search.strategies.acquisition import expected_improvement
from search.strategies.proposals import Proposals
from supernet.space import Arch

# n architectures, s scores, c costs, k members of the front

LOOKED_AT = 100
NOTHING = np.empty(0)


@dataclass(frozen=True)
class BayesianConfig:
    initial: int = 10  # architectures evaluated before anything is predicted
    batch: int = 5  # evaluated at a time afterwards
    children: int = 800  # candidates that descend from the best
    random: int = 200  # candidates that do not
    parents: int = 20  # the best evaluated, from which candidates descend
    climbs: int = 2  # times that the neighbours of the best candidates become candidates, too
    climbers: int = 10  # whose neighbours these are
    mutation_rate: float = 0.1  # probability for each choice of a child to change

    def __post_init__(self):
        for name in ("initial", "batch", "children", "parents"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is a number of architectures, 1 or more, not {getattr(self, name)}")
        for name in ("random", "climbs", "climbers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is a number, 0 or more, not {getattr(self, name)}")
        if not 0 < self.mutation_rate <= 1:
            raise ValueError(f"mutation_rate is a probability above 0, not {self.mutation_rate}")


class Bayesian:
    """`ask` for the architectures whose evaluation promises most, `tell` their scores; of problems with one score.

    After `initial` architectures (random ones, and where a cost is an objective both ends of the space), every batch is
    what a `ScorePosterior` of all evaluations expects to add most hypervolume (`acquisition.expected_improvement`; with
    no cost among the objectives, the expected improvement of the best score). All costs of the problem are features
    of the posterior, those too that are neither limited nor objectives. Candidates are children of the best evaluated
    architectures, random ones, and the neighbours of the most promising of these. The members of a batch are chosen
    one after another, each believed to score what was predicted of it (the kriging believer, Ginsbourger et al. 2010).

    `notes` holds, for every batch that was predicted, the `rank_correlation` of predictions and evaluations, and the
    `error_ratio`: the root mean square of the errors in standard deviations predicted for an evaluation, 1 where the
    posterior is as sure as it may be.

    ValueError for a problem with several scores, or whose score is no objective.
    """

    def __init__(self, problem: Problem, seed: int = 0, config: BayesianConfig | None = None) -> None:
        if len(problem.scores) > 1 or problem.scores[0] not in problem.objectives:
            raise ValueError(
                f"the strategy bayesian is for one score that is an objective, not for the scores "
                f"{', '.join(problem.scores)} and the objectives {', '.join(problem.objectives)}; take evolution"
            )
        self.problem = problem
        self.config = config or BayesianConfig()
        self.notes: dict[str, float] = {}
        self._archs: list[Arch] = []  # evaluated, but for failed ones
        self._scores = np.empty(0)
        self._predicted: dict[Arch, tuple[float, float]] = {}  # mean and deviation of an evaluation, warped
        self._posterior: ScorePosterior | None = None
        self._proposals = Proposals(problem)
        self._generator = np.random.default_rng(seed)
        self._traded = [list(problem.costs).index(name) for name in problem.objectives if name in problem.costs]

    def ask(self) -> list[Arch]:
        """The next batch. Smaller than asked for, or empty, when few or no new architectures can be found."""
        self._predicted = {}
        space, count = self.problem.space, self.config.batch
        if not self._archs:
            ends = self._proposals.new([space.smallest, space.largest] if self._traded else [], self.config.initial)
            return ends + self._proposals.sample(self.config.initial - len(ends), self._generator)
        if len(self._archs) < MINIMUM:
            return self._proposals.sample(count, self._generator)
        self._posterior = ScorePosterior.fit(self._points(self._archs), self._scores)
        candidates, promise = self._candidates()
        if not candidates:
            return self._proposals.sample(count, self._generator)
        return self._proposals.new(self._batch(candidates, promise), count)

    def tell(self, archs: Sequence[Arch], scores: np.ndarray) -> None:
        """The scores [n, 1] of architectures, NaN for failed ones, which teach the posterior nothing."""
        known = [index for index in range(len(archs)) if np.isfinite(scores[index, 0])]
        self._archs += [archs[index] for index in known]
        self._scores = np.append(self._scores, scores[known, 0])
        foretold = [index for index in known if archs[index] in self._predicted]
        self.notes = {}
        if foretold:
            mean, deviation = np.array([self._predicted[archs[index]] for index in foretold]).T
            found = self._posterior.warp(scores[foretold, 0])
            self.notes = {
                "rank_correlation": rank_correlation(mean, found),
                "error_ratio": float(np.sqrt(np.mean(((found - mean) / deviation) ** 2))),
            }

    def _points(self, archs: Sequence[Arch]) -> Points:
        return Points(self.problem.space, archs, self.problem.price(archs))

    def _candidates(self) -> tuple[list[Arch], np.ndarray]:
        """Admissible architectures that were not asked for, the neighbours of promising ones among them, and what each
        promises [n]."""
        space, generator, config = self.problem.space, self._generator, self.config
        if space.size <= config.children + config.random:
            candidates = self._proposals.admissible(space)
            return candidates, self._promise(self._posterior, candidates)
        values = self.problem.values(self._scores[:, None], self.problem.price(self._archs))
        parents = [self._archs[index] for index in pareto.select(values, config.parents)]

        pairs = generator.integers(len(parents), size=(2, config.children))
        first, second = ([parents[index] for index in row] for row in pairs)
        children = space.mutants(space.crossovers(first, second, generator), generator, config.mutation_rate)
        random = [space.sample(generator) for _ in range(config.random)]
        near = [arch for parent in parents[: config.climbers] for arch in neighbours(space, parent)]
        candidates = self._proposals.admissible([*children, *random, *near])
        promise = self._promise(self._posterior, candidates)
        climbed: set[Arch] = set()
        for _ in range(config.climbs if candidates else 0):
            best = np.argsort(-promise, kind="stable")
            top = [candidates[index] for index in best[: config.climbers] if candidates[index] not in climbed]
            climbed.update(top)
            around = [arch for one in top for arch in neighbours(space, one)]
            known = set(candidates)
            around = [arch for arch in self._proposals.admissible(around) if arch not in known]
            candidates += around
            promise = np.concatenate([promise, self._promise(self._posterior, around)])
        return candidates, promise

    def _batch(self, candidates: Sequence[Arch], promise: np.ndarray) -> list[Arch]:
        """The members of the next batch, chosen one after another by what each promises [n] while those before it are
        believed.

        What is believed lessens what others promise, so that of these `LOOKED_AT` at a time are looked at anew, the
        most promising first, until none of the rest promised more (lazy greedy, Minoux 1978).
        """
        posterior, chosen, believed = self._posterior, list[Arch](), np.empty(0)
        promise = promise.copy()
        while len(chosen) < min(self.config.batch, len(candidates)):
            looked_at: set[int] = set()
            while chosen and len(looked_at) < len(candidates):
                order = np.argsort(-promise, kind="stable")
                if order[0] in looked_at:
                    break
                rest = [index for index in order.tolist() if index not in looked_at][:LOOKED_AT]
                promise[rest] = self._promise(posterior, [candidates[index] for index in rest], chosen, believed)
                looked_at.update(rest)
            best = int(promise.argmax())
            chosen.append(candidates[best])
            promise[best] = -np.inf
            point = self._points(chosen[-1:])
            mean, _ = posterior.predict(point)
            believed = np.append(believed, mean)
            posterior = posterior.believing(point, mean)
        mean, deviation = self._posterior.predict(self._points(chosen))
        self._predicted = dict(zip(chosen, zip(mean, np.sqrt(deviation**2 + self._posterior.noise))))
        return chosen

    def _promise(
        self,
        posterior: ScorePosterior,
        candidates: Sequence[Arch],
        chosen: Sequence[Arch] = (),
        believed: np.ndarray = NOTHING,
    ) -> np.ndarray:
        """The expected growth [n] of the hypervolume by each candidate, if the `chosen` score as `believed`."""
        if not candidates:
            return NOTHING
        prices = self.problem.price(candidates)
        mean, deviation = posterior.predict(self._points(candidates))
        known = [*self._archs, *chosen]
        scores = np.concatenate([posterior.warp(self._scores), believed])
        reference = dict(zip(self.problem.objectives, self.problem.reference))
        scale = np.array([reference[list(self.problem.costs)[index]] for index in self._traded])
        costs = self.problem.price(known)[:, self._traded] / scale
        front = pareto.front(np.column_stack([-scores, costs]))
        worst = float(posterior.warp(-reference[self.problem.scores[0]]))
        return expected_improvement(
            mean,
            deviation,
            prices[:, self._traded] / scale,
            scores[front],
            costs[front],
            worst,
            np.ones(len(scale)),
            posterior.warp.inverse,
        )
