"""Racing: all architectures of a generation are judged by few examples, only those that may be on the front by more.

After every look at the examples, whose number doubles from one look to the next, an architecture is rejected if a rival
that costs no more is surely better on the examples that both have seen. What is left in the end has seen all of them.
Races are from Maron and Moore, "Hoeffding races", NIPS 1993, successive halving from Jamieson and Talwalkar, AISTATS
2016, arXiv 1502.07943; here nothing but certainty rejects, however many are left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from search import pareto
from search.certainty import worse_p_values
from search.evaluator import Scored
from search.history import Evaluation, Rejection
from search.judgements import Judgements
from search.problem import Problem
from supernet.space import Arch
from supernet.training.randomness import Stream, generator

# n architectures, m rivals, N examples, k costs that are objectives

FIRST_LOOK = 250
"""Examples that all architectures are judged by."""

Judging = Callable[[Sequence[Arch], np.ndarray], Iterator[Scored]]
"""Gives of architectures, as their score, the `search.scores.accuracy.Judged` on the examples of these indices."""


class _Beaten(NamedTuple):
    """By which rival an architecture was rejected, and after how many examples."""

    rival: int
    examples: int


class _Rivals(NamedTuple):
    """The best so far, then all that are in the race."""

    values: np.ndarray  # [m, N] NaN for examples that were not looked at
    costs: np.ndarray  # [m, k]
    judged: int  # how many of them are judged by all examples, the first


class Racing:
    """An evaluator (`search.evaluator.Evaluator`) of `problem`, which has one score, by races on so many `examples`.

    Of all architectures that were proposed so far, those are on the *exact front* that none dominates by the costs
    among the objectives and the score on all examples. Those of one call race. Each that is on the exact front is
    rejected with a probability of 1 - `confidence` at most, if the architectures do not follow from the order of the
    examples, which `seed` shuffles; so with a confidence of 1 - 0.05 / n none of n is lost with 95 %. Where examples'
    values are 0 and 1 this holds exactly, else as far as a t-test does.

    Half of the risk that is left is taken at each look, since early looks save most. The rival is the best of former
    calls that costs no more; where there is none, all in the race that cost no more are rivals, by Bonferroni.

    An architecture that is judged by all examples has their mean as its score, as without a race. One that is rejected
    has a `search.history.Rejection`: the score of the rival that rejected it plus the mean difference on the examples
    that both saw, so that it is always below. A call gives all it has at its end. `past` holds evaluations of a search
    that goes on; those on the front are judged once more, but for what `kept` has, where all that is judged is kept.

    ValueError for a problem of several scores, a confidence that is not between 0 and 1, and a score that is no mean
    over examples.
    """

    def __init__(
        self,
        problem: Problem,
        judge: Judging,
        examples: int,
        confidence: float,
        seed: int = 0,
        past: Mapping[Arch, Evaluation] = MappingProxyType({}),
        first_look: int = FIRST_LOOK,
        kept: Judgements | None = None,
    ) -> None:
        if len(problem.scores) != 1:
            raise ValueError(f"a race is by a single score, not by {', '.join(problem.scores)}")
        if not 0 < confidence < 1:
            raise ValueError(f"the confidence of a race is between 0 and 1, such as 0.9, not {confidence}")
        self.problem = problem
        self.looks = looks(examples, first_look)
        self._judge = judge
        self._risk = 1 - confidence
        self._order = generator(seed, Stream.RACE).permutation(examples)
        self._name = problem.scores[0]
        self._columns = [i for i, name in enumerate(problem.costs) if name in problem.objectives]
        self._past = past
        self._kept = kept
        self._best: list[Arch] | None = None  # the front so far; None until it is known what past evaluations have
        self._values = np.empty((0, examples))  # of the front, on the shuffled examples

    def __call__(self, archs: Sequence[Arch]) -> Iterator[Scored]:
        if self._best is None:
            self._recall()
        values = np.full((len(archs), len(self._order)), np.nan)
        racing, errors, beaten = list(range(len(archs))), {}, {}
        level, seen = self._risk, 0
        for look in self.looks:
            level /= 2
            errors |= self._look(archs, racing, values, seen, look)
            racing = [index for index in racing if index not in errors]
            rivals = self._rivals(archs, values)
            if look < len(self._order):
                beaten |= _beaten(rivals, racing, look, level)
            racing = [index for index in racing if index not in beaten]
            seen = look
        for index in range(len(archs)):
            if index in errors:
                yield Scored(index, {}, errors[index])
            elif index in beaten:
                score, error = _estimate(rivals, beaten, rivals.judged + index)
                left_out = Rejection({self._name: score}, {self._name: error}, beaten[index].examples)
                yield Scored(index, {}, rejected=left_out)
            else:
                yield Scored(index, {self._name: _mean(values[index])})
        self._keep(archs, racing, rivals)

    def _look(
        self, archs: Sequence[Arch], racing: Sequence[int], values: np.ndarray, seen: int, look: int
    ) -> dict[int, str]:
        """Puts what those `racing` make of the examples from `seen` to `look` into `values`; the errors of others."""
        errors, missing = {}, []
        for index in racing:
            known = self._kept.get(archs[index], seen, look) if self._kept is not None else None
            if known is None:
                missing.append(index)
            else:
                values[index, seen:look] = known
        for outcome in self._judge([archs[index] for index in missing], self._order[seen:look]) if missing else ():
            index = missing[outcome.index]
            judged = outcome.scores.get(self._name)
            if outcome.error or judged is None:
                errors[index] = outcome.error or f"there is no {self._name}"
            elif not math.isfinite(judged.score):
                errors[index] = f"{self._name} is {judged.score}"
            elif judged.per_example is None:
                raise ValueError(
                    f"a race needs a score that is the mean over examples, and {self._name} is none: search without"
                )
            else:
                values[index, seen:look] = judged.per_example
                if self._kept is not None:
                    self._kept.append(archs[index], seen, judged.per_example)
        return errors

    def _rivals(self, archs: Sequence[Arch], values: np.ndarray) -> _Rivals:
        costs = self.problem.price([*self._best, *archs])[:, self._columns]
        return _Rivals(np.concatenate([self._values, values]), costs, len(self._best))

    def _keep(self, archs: Sequence[Arch], judged: Sequence[int], rivals: _Rivals) -> None:
        """The front of those judged by all examples is what later calls race against."""
        together = [*range(rivals.judged), *(rivals.judged + index for index in judged)]
        scores = rivals.values[together].mean(axis=1)
        front = np.sort(pareto.front(np.column_stack([rivals.costs[together], -scores])))
        known = [*self._best, *(archs[index] for index in judged)]
        self._best, self._values = [known[index] for index in front], rivals.values[together][front]

    def _recall(self) -> None:
        """Judges the front of past evaluations once more, as those are judged that it is to race against."""
        self._best = []
        exact = [evaluation for evaluation in self._past.values() if evaluation.scores]
        if not exact:
            return
        costs = self.problem.price([evaluation.arch for evaluation in exact])[:, self._columns]
        scores = np.array([evaluation.scores[self._name] for evaluation in exact])
        front = np.sort(pareto.front(np.column_stack([costs, -scores])))
        archs = [exact[index].arch for index in front]
        values = np.full((len(archs), len(self._order)), np.nan)
        errors = self._look(archs, range(len(archs)), values, 0, len(self._order))
        judged = [index for index in range(len(archs)) if index not in errors]
        self._keep(archs, judged, self._rivals(archs, values))


def looks(examples: int, first: int = FIRST_LOOK) -> list[int]:
    """How many examples have been seen after each look: `first`, twice as many, and so on, and all at the last."""
    counts = []
    while first < examples:
        counts.append(first)
        first *= 2
    return [*counts, examples]


def _beaten(rivals: _Rivals, racing: Sequence[int], look: int, level: float) -> dict[int, _Beaten]:
    """Which of those `racing` are surely worse than a rival that costs no more, at this level for each."""
    if not racing:
        return {}
    own = rivals.judged + np.array(racing)
    affordable = (rivals.costs[None] <= rivals.costs[own, None]).all(axis=2)  # [n, m]
    affordable[np.arange(len(own)), own] = False
    levels = np.where(affordable, level / np.maximum(affordable.sum(axis=1, keepdims=True), 1), 0.0)
    former = affordable[:, : rivals.judged]
    for row in np.flatnonzero(former.any(axis=1)):
        scores = np.where(former[row], rivals.values[: rivals.judged].mean(axis=1), -np.inf)
        levels[row] = 0.0
        levels[row, scores.argmax()] = level
    compared = np.flatnonzero((levels > 0).any(axis=0) & ~np.isnan(rivals.values[:, look - 1]))
    p_values = np.ones(affordable.shape)
    p_values[:, compared] = worse_p_values(rivals.values[own, :look], rivals.values[compared, :look])
    sure = np.where(p_values < levels, p_values, np.inf)
    best = sure.argmin(axis=1)
    return {i: _Beaten(int(best[row]), look) for row, i in enumerate(racing) if np.isfinite(sure[row, best[row]])}


def _estimate(rivals: _Rivals, beaten: Mapping[int, _Beaten], rival: int) -> tuple[float, float]:
    """The score, and its standard error, of one that has seen all examples or that was rejected: by the difference to
    the rival, of whose score the error adds."""
    by = beaten.get(rival - rivals.judged)
    if by is None:
        return _mean(rivals.values[rival]), 0.0
    score, error = _estimate(rivals, beaten, by.rival)
    difference = rivals.values[rival, : by.examples] - rivals.values[by.rival, : by.examples]
    left = 1 - by.examples / rivals.values.shape[1]  # correction for a finite population
    own = math.sqrt(difference.var(ddof=1) / by.examples * left)
    return score + float(difference.mean()), math.hypot(error, own)


def _mean(values: np.ndarray) -> float:
    """In single precision, as `search.scores.accuracy.first_metric` gives it."""
    return float(np.float32(values.mean()))
