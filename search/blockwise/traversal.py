"""The best way to put paths of blocks together under limits, when an architecture's loss is the sum of its blocks'.

The traversal search of DNA (Li et al., CVPR 2020, arXiv 1911.13053, section 3.4), as an A* search: blocks are decided
one after another, and a partial choice is followed only as far as the least loss that the remaining blocks can add
within the remaining budget allows it to be the next best one. The bound is that of Pareto fronts of cost and loss,
merged from the last block to the first.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

# K blocks, p paths of a block, c costs

POINTS = 2000  # of a front of several blocks; a longer one is replaced by a lower bound of so many steps
BLOCK_POINTS = 500  # of a front of one block
SLACK = 1e-9  # relative to the budget, for rounding in sums of costs


class RatedBlocks(NamedTuple):
    """Blocks whose paths can be chosen independently."""

    losses: Sequence[np.ndarray]  # K times [p], lower is better
    costs: Sequence[np.ndarray]  # K times [p, c]; they add up
    budget: np.ndarray  # [c]


class Combination(NamedTuple):
    loss: float  # the sum over blocks
    case: int  # which of the `RatedBlocks`
    paths: tuple[int, ...]  # of each block, the index of its path


def combinations(cases: Sequence[RatedBlocks]) -> Iterator[Combination]:
    """Every choice of one path for each block whose costs are within the budget, by increasing loss, over all `cases`.

    The first one is the best: the same as by brute force, whatever the costs. Cases are alternatives, such as the
    values of what blocks have in common; one is looked at only when it may hold the next best choice.

    ValueError if there are no blocks, or a block has no paths.
    """
    heap: list[tuple[float, int, Combination | None, Iterator[Combination]]] = []
    ties = itertools.count()
    for index, case in enumerate(cases):
        if not case.losses or not all(map(len, case.losses)):
            raise ValueError(f"there are no paths to choose from: blocks have {[len(x) for x in case.losses]} paths")
        least = float(sum(losses.min() for losses in case.losses))
        heapq.heappush(heap, (least, next(ties), None, _traverse(case, index)))
    while heap:
        _, _, found, rest = heapq.heappop(heap)
        if found:
            yield found
        if following := next(rest, None):
            heapq.heappush(heap, (following.loss, next(ties), following, rest))


class _Front(NamedTuple):
    """The least loss [n] that costs up to some value [n] can buy: costs increase, losses decrease."""

    costs: np.ndarray
    losses: np.ndarray

    def least_loss(self, budget: np.ndarray) -> np.ndarray:
        """The least loss within each budget; infinite where nothing is."""
        index = np.searchsorted(self.costs, budget, side="right") - 1
        return np.where(index < 0, np.inf, self.losses[index])


def _traverse(case: RatedBlocks, index: int) -> Iterator[Combination]:
    if not len(case.budget):  # a cost of nothing, which nothing exceeds
        case = RatedBlocks(case.losses, [np.zeros((len(losses), 1)) for losses in case.losses], np.zeros(1))
    last = len(case.losses) - 1
    budget = case.budget + SLACK * np.abs(case.budget)
    bounds = _bounds(case)
    by_loss = np.argsort(case.losses[last], kind="stable")

    def children(block: int, loss: float, spent: np.ndarray) -> Iterator[tuple[float, int]]:
        """The paths of `block` after others of this loss and cost, by the least total they can lead to."""
        if block == last:
            for part in np.array_split(by_loss, len(by_loss) // 64 + 1):  # few are looked at, so that few are kept
                within = (spent + case.costs[block][part] <= budget).all(axis=1)
                yield from ((loss + float(case.losses[block][path]), path) for path in part[within].tolist())
            return
        remaining = budget - spent - case.costs[block]
        totals = loss + case.losses[block] + _least_loss(bounds[block + 1], remaining)
        order = np.argsort(totals, kind="stable")
        order = order[: np.isfinite(totals).sum()]
        yield from zip(totals[order].tolist(), order.tolist())

    ties = itertools.count()
    heap: list[tuple[float, int, int, Iterator[tuple[float, int]], float, np.ndarray, tuple[int, ...]]] = []

    def push(paths: Iterator[tuple[float, int]], loss: float, spent: np.ndarray, before: tuple[int, ...]) -> None:
        if (child := next(paths, None)) is not None:
            heapq.heappush(heap, (child[0], next(ties), child[1], paths, loss, spent, before))

    push(children(0, 0.0, np.zeros_like(budget)), 0.0, np.zeros_like(budget), ())
    while heap:
        total, _, path, siblings, loss, spent, before = heapq.heappop(heap)
        push(siblings, loss, spent, before)
        block, chosen = len(before), (*before, path)
        if block == last:
            yield Combination(total, index, chosen)
            continue
        loss, spent = loss + float(case.losses[block][path]), spent + case.costs[block][path]
        push(children(block + 1, loss, spent), loss, spent, chosen)


def _least_loss(fronts: Sequence[_Front], budgets: np.ndarray) -> np.ndarray:
    """A lower bound of the loss within budgets [n, c], from a front for each cost."""
    return np.max([front.least_loss(column) for front, column in zip(fronts, budgets.T)], axis=0)


def _bounds(case: RatedBlocks) -> list[list[_Front]]:
    """For each block and cost, the front of that block and all after it together."""
    following: list[_Front] = []
    bounds: list[list[_Front]] = []
    for losses, costs in reversed(list(zip(case.losses, case.costs))):
        own = [_front(column, losses, BLOCK_POINTS) for column in costs.T]
        following = [_sum(a, b) for a, b in zip(own, following)] if following else own
        bounds.insert(0, following)
    return bounds


def _sum(a: _Front, b: _Front) -> _Front:
    return _front(np.add.outer(a.costs, b.costs).ravel(), np.add.outer(a.losses, b.losses).ravel(), POINTS)


def _front(costs: np.ndarray, losses: np.ndarray, points: int) -> _Front:
    """The front of points of these costs [n] and losses [n], or a lower bound of it with at most `points` steps."""
    order = np.lexsort((losses, costs))
    costs, losses = costs[order], losses[order]
    better = losses < np.minimum.accumulate(np.concatenate([[np.inf], losses[:-1]]))
    costs, losses = costs[better], losses[better]
    if len(costs) > points:
        starts = np.linspace(0, len(costs), points + 1).astype(int)
        costs, losses = costs[starts[:-1]], losses[starts[1:] - 1]  # of each step the least cost and the least loss
    return _Front(costs, losses)
