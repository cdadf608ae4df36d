"""A search from start to end: ask a strategy, have its architectures evaluated, record, tell, and so on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from search import pareto
from search.evaluator import Evaluator, Scored
from search.history import Evaluation, History, Rejection
from search.limits import reachable
from search.problem import Problem
from supernet.space import Arch

# n architectures, s scores


class Strategy(Protocol):
    """What decides which architectures are evaluated.

    It may have `notes`, numbers by name that it has to say of the last `tell`.
    """

    def ask(self) -> list[Arch]:
        """The next architectures to evaluate: admissible, different, and none asked for before; empty at the end."""

    def tell(self, archs: Sequence[Arch], scores: np.ndarray) -> None:
        """The scores [n, s] of architectures that were asked for, NaN where an evaluation failed."""


@dataclass(frozen=True)
class Generation:
    """Where a search stands after a round of ask and tell."""

    index: int  # from 0
    evaluated: int  # architectures so far
    failed: int  # of these architectures
    hypervolume: float  # of everything evaluated so far (`Problem.hypervolume`)
    best: Mapping[str, float]  # the best value of each score so far
    notes: Mapping[str, float] = field(default_factory=dict)  # what the strategy says of this round


@dataclass(frozen=True)
class Result:
    """What a search evaluated, in this order, and where it stood after every generation."""

    problem: Problem
    evaluations: list[Evaluation] = field(default_factory=list)
    generations: list[Generation] = field(default_factory=list)

    @property
    def front(self) -> list[Evaluation]:
        """The evaluations that none dominates in the objectives, by increasing first objective, the best first."""
        return [self.evaluations[index] for index in pareto.front(self.values())]

    def values(self) -> np.ndarray:
        """The objectives [n, m] of all evaluations, lower is better."""
        return self.problem.values(*_table(self.evaluations, self.problem))


def ask_and_tell(
    problem: Problem,
    strategy: Strategy,
    evaluate: Evaluator,
    budget: int,
    *,
    history: History | None = None,
    on_evaluation: Callable[[Evaluation, int], None] | None = None,
    on_generation: Callable[[Generation], None] | None = None,
) -> Result:
    """Evaluate up to `budget` architectures that `strategy` asks for; fewer if it has no more.

    An architecture that is in `history` is not evaluated again. A strategy that follows from its seed asks for the same
    architectures when it starts anew, so a search that was killed goes through its past in moments and continues.

    `on_evaluation(evaluation, count)` is called after every evaluation, with the number so far, and
    `on_generation(generation)` after every `tell`. ValueError, before anything is evaluated, if no architecture
    meets the limits (`limits.reachable`) or the budget is not positive.
    """
    if budget < 1:
        raise ValueError(f"a search evaluates at least 1 architecture, not {budget}")
    if problem.limits:
        reachable(problem, np.random.default_rng(0))
    result = Result(problem)
    standing = _Standing(problem)
    past = history.past if history else {}
    while (remaining := budget - len(result.evaluations)) > 0 and (archs := strategy.ask()[:remaining]):
        index = len(result.generations)
        done: dict[Arch, Evaluation] = {arch: past[arch] for arch in archs if arch in past}
        fresh = [arch for arch in archs if arch not in done]
        prices = problem.price(fresh)
        for outcome in evaluate(fresh) if fresh else ():
            arch = fresh[outcome.index]
            evaluation = _evaluation(arch, outcome, dict(zip(problem.costs, prices[outcome.index].tolist())), index)
            done[arch] = evaluation
            if history:
                history.append(evaluation)
            if on_evaluation:
                on_evaluation(evaluation, len(result.evaluations) + len(done))
        result.evaluations.extend(done[arch] for arch in archs)
        generation = [done[arch] for arch in archs]
        strategy.tell(archs, _told(generation, problem))
        notes = dict(getattr(strategy, "notes", {}))
        result.generations.append(dataclasses.replace(standing.add(generation), notes=notes))
        if on_generation:
            on_generation(result.generations[-1])
    return result


def _evaluation(arch: Arch, outcome: Scored, costs: Mapping[str, float], generation: int) -> Evaluation:
    wrong = [name for name, value in outcome.scores.items() if not np.isfinite(value)]
    error = outcome.error or (f"{wrong[0]} is {outcome.scores[wrong[0]]}" if wrong else None)
    return Evaluation(arch, {} if error else dict(outcome.scores), costs, generation, error, outcome.rejected)


def _told(evaluations: Sequence[Evaluation], problem: Problem) -> np.ndarray:
    """What a strategy hears of the scores [n, s]: of rejected architectures the estimates, NaN of failed ones."""
    return _scores([evaluation.rejected or evaluation for evaluation in evaluations], problem)


def _table(evaluations: Sequence[Evaluation], problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Scores [n, s], NaN for failed and rejected evaluations, and costs [n, c]."""
    prices = [[evaluation.costs[name] for name in problem.costs] for evaluation in evaluations]
    return _scores(evaluations, problem), np.array(prices).reshape(len(evaluations), len(problem.costs))


def _scores(found: Sequence[Evaluation | Rejection], problem: Problem) -> np.ndarray:
    """[n, s], NaN where there is none."""
    rows = [[each.scores.get(name, np.nan) for name in problem.scores] for each in found]
    return np.array(rows).reshape(len(found), len(problem.scores))


class _Standing:
    """The front and the best scores so far, kept so that a generation costs what it brings."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._front = np.empty((0, len(problem.objectives)))
        self._best = np.full(len(problem.scores), -np.inf)
        self._evaluated = self._failed = self._index = 0

    def add(self, evaluations: Sequence[Evaluation]) -> Generation:
        scores, prices = _table(evaluations, self._problem)
        values = np.concatenate([self._front, self._problem.values(scores, prices)])
        self._front = values[pareto.front(values)]
        self._best = np.fmax(self._best, np.fmax.reduce(scores))
        self._evaluated += len(evaluations)
        self._failed += sum(evaluation.error is not None for evaluation in evaluations)
        generation = Generation(
            index=self._index,
            evaluated=self._evaluated,
            failed=self._failed,
            hypervolume=self._problem.hypervolume(self._front),
            best=dict(zip(self._problem.scores, self._best.tolist())),
        )
        self._index += 1
        return generation
