"""What is searched: a space, what is wanted of its architectures, and what they may cost at most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from search import pareto
from supernet.space import Arch, SearchSpace

if TYPE_CHECKING:
    import torch

# n architectures, s scores, c costs, m objectives

Score = Callable[[Sequence[Arch]], Sequence[float] | np.ndarray]  # higher is better
Cost = Callable[[Sequence[Arch]], Sequence[float] | np.ndarray]  # lower is better
Placed = TypeVar("Placed")


def placed(score: Placed, device: torch.device | str) -> Placed:
    """`score`, or another thing that computes, with all that it computes with on `device`: what its method `to(device)`
    gives, as that of a module does, or itself if it has none."""
    return score.to(device) if hasattr(score, "to") else score


class Problem:
    """Search `space` for high scores and low costs within hard limits.

    `scores` names what has to be evaluated. They are only named here, because a search does not know who evaluates.
    `costs` are cheap callables, on lists of architectures; the search asks them before it proposes anything.
    `limits` are the largest admissible values of costs; an architecture beyond one is never evaluated.
    `objectives` are the scores and costs that are traded off against each other; all of them unless given, and a cost
    that is no objective is only limited and recorded.
    `reference` bounds the hypervolume: the worst value of an objective that counts; by default 0 for a score, and for a
    cost its limit or else what the largest architecture costs. In the hypervolume a cost is a part of its reference, so
    that the hypervolumes of searches for several devices are comparable.

    ValueError for a limit on an unknown cost, an unknown objective, or no scores.
    """

    def __init__(
        self,
        space: SearchSpace,
        scores: Sequence[str],
        costs: Mapping[str, Cost] | None = None,
        limits: Mapping[str, float] | None = None,
        objectives: Sequence[str] | None = None,
        reference: Mapping[str, float] | None = None,
    ) -> None:
        self.space = space
        self.scores = tuple(scores)
        self.costs = dict(costs or {})
        self.limits = dict(limits or {})
        names = [*self.scores, *self.costs]
        self.objectives = tuple(names if objectives is None else objectives)
        if not self.scores:
            raise ValueError("a search needs at least one score")
        if len(set(names)) < len(names):
            raise ValueError(f"scores and costs need names of their own: {', '.join(names)}")
        _check_known("a limit on", self.limits, list(self.costs))
        _check_known("an objective", self.objectives, names)
        _check_known("a reference for", reference or {}, names)
        for name, limit in self.limits.items():
            if not limit > 0:
                raise ValueError(f"the limit on {name} is {limit}, but only a positive one can be met")
        self._limits = np.array([self.limits.get(name, np.inf) for name in self.costs])
        self.reachable: Arch | None = None  # an architecture within the limits, once `limits.reachable` has found it
        self._prices: dict[Arch, np.ndarray] = {}
        self.reference = self._reference(reference or {})

    def price(self, archs: Sequence[Arch]) -> np.ndarray:
        """The costs [n, c] of architectures. The costs of admissible architectures are remembered."""
        unknown = [arch for arch in archs if arch not in self._prices]
        if not unknown:
            return np.array([self._prices[arch] for arch in archs]).reshape(len(archs), len(self.costs))
        columns = [np.asarray(cost(unknown), dtype=float).reshape(len(unknown)) for cost in self.costs.values()]
        rows = np.stack(columns, axis=1) if columns else np.zeros((len(unknown), 0))
        for column, name in enumerate(self.costs):
            if np.isnan(rows[:, column]).any():
                raise ValueError(f"cost {name!r} is NaN for {unknown[np.isnan(rows[:, column]).argmax()]!r}")
        fresh = dict(zip(unknown, rows))
        prices = np.array([self._prices[arch] if arch in self._prices else fresh[arch] for arch in archs])
        self._prices.update((arch, row) for arch, row in fresh.items() if (row <= self._limits).all())
        return prices.reshape(len(archs), len(self.costs))

    def violation(self, prices: np.ndarray) -> np.ndarray:
        """The largest ratio of a cost to its limit, [n], for costs [n, c]; up to 1 an architecture is admissible."""
        return (prices / self._limits).max(axis=1, initial=0.0)

    def values(self, scores: np.ndarray, prices: np.ndarray) -> np.ndarray:
        """The objectives [n, m], lower is better, of scores [n, s] and costs [n, c]. Failed scores are infinite."""
        scores = np.where(np.isnan(scores), -np.inf, scores)
        columns = dict(zip([*self.scores, *self.costs], [*-scores.T, *prices.T]))
        return np.stack([columns[name] for name in self.objectives], axis=1)

    def hypervolume(self, values: np.ndarray) -> float:
        """The volume that objectives [n, m], as `values` gives them, dominate up to the reference; higher is better."""
        is_cost = np.array([name in self.costs for name in self.objectives])
        scale = np.where(is_cost, self.reference, 1.0)
        return pareto.hypervolume(values / scale, self.reference / scale)

    def describe(self) -> dict[str, object]:
        """What tells this problem from others, as JSON."""
        return {
            "space": self.space.fingerprint,
            "scores": list(self.scores),
            "costs": list(self.costs),
            "limits": self.limits,
            "objectives": list(self.objectives),
        }

    def _reference(self, given: Mapping[str, float]) -> np.ndarray:
        """The reference point [m] of the hypervolume, lower is better."""
        largest = dict(zip(self.costs, self.price([self.space.largest])[0]))
        worst = dict.fromkeys(self.scores, 0.0) | largest | self.limits | dict(given)
        return np.array([-worst[name] if name in self.scores else worst[name] for name in self.objectives])


def _check_known(what: str, names: Sequence[str] | Mapping[str, float], known: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{what} {unknown[0]!r}, but there are only {', '.join(known) or 'no costs'}")
