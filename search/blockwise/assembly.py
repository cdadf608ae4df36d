"""Architectures from the rated paths of their blocks: the best ones first, within limits on any costs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from search.blockwise.blocks import Block
from search.blockwise.traversal import RatedBlocks, combinations
from search.problem import Cost, Problem
from supernet.space import Arch, SearchSpace, Value

# K blocks, p paths of a block, a assignments of what blocks have in common, c costs

logger = logging.getLogger(__name__)

ROUNDING = 1e-6  # relative: costs that are off by no more add up; predictors sum in single precision
SAMPLES = 500  # random architectures that tell how far a cost is off


class _Paths(NamedTuple):
    """What architectures are put together from."""

    blocks: Sequence[Block]
    shared: frozenset[str]  # choices that several blocks depend on
    cases: Sequence[Arch]  # [a] their assignments
    tables: Sequence[Sequence[Arch]]  # K times [p]


class _Sum(NamedTuple):
    """A cost as a sum: of what blocks have in common, and of what each path adds."""

    common: np.ndarray  # [a]
    paths: list[np.ndarray]  # K times [p]
    limit: float


def assemble(
    space: SearchSpace, blocks: Sequence[Block], losses: Sequence[Mapping[Arch, float]], problem: Problem
) -> Iterator[Arch]:
    """The architectures of `space` within the limits of `problem`, by increasing sum of their blocks' losses.

    Choices that several blocks depend on, such as a width between two of them, are the same in all. Choices that no
    block depends on, such as those behind the last cut, have their last values in all architectures that come first,
    and then their first ones, which leave more of the limits to the blocks.

    Costs bound the traversal (`search.blockwise.traversal`) as sums over blocks. MACs, parameters and additive latency
    predictors are such sums, or their logarithms are, and for these the order is exact: the first architecture is the
    best. Of other costs the sum is off by some part in random architectures, which a warning tells: those are looked at
    whose sum is within the limit by twice the most that was seen, and their true cost decides.

    ValueError if no architecture is within the limits.
    """
    rated = {name for block in blocks for name in block.scope}
    free = {name: choice.values for name, choice in space.choices.items() if name not in rated}
    found = False
    for end in (-1, 0) if free else (-1,):
        rest = {name: values[end] for name, values in free.items()}
        for arch in _with_rest(space, rest, blocks, losses, problem):
            found = True
            yield arch
    if not found:
        limits = ", ".join(f"{name} <= {limit:g}" for name, limit in problem.limits.items())
        smallest = dict(zip(problem.costs, problem.price([space.smallest])[0].tolist()))
        raise ValueError(
            f"no architecture that is rated meets {limits}; the smallest has "
            f"{', '.join(f'{name} = {smallest[name]:.6g}' for name in problem.limits)}"
        )


def _with_rest(
    space: SearchSpace,
    rest: Mapping[str, Value],
    blocks: Sequence[Block],
    losses: Sequence[Mapping[Arch, float]],
    problem: Problem,
) -> Iterator[Arch]:
    """Those architectures that have the values of `rest`."""
    uses = Counter(name for block in blocks for name in block.scope)
    shared = frozenset(name for name, count in uses.items() if count > 1)
    cases = list(space.subspace(shared)) if shared else [Arch({})]
    paths = [list(table) for table in losses]
    rated = frozenset(name for block in blocks for name in block.scope)
    generator = np.random.default_rng(0)
    samples = [_part(space.sample(generator), rated) for _ in range(SAMPLES)]
    sums = [
        _as_sum(_Prices(space, rest, problem.costs[name]), _Paths(blocks, shared, cases, paths), samples, limit, name)
        for name, limit in problem.limits.items()
    ]
    members = [_members(block, shared, cases, own) for block, own in zip(blocks, paths)]  # K times a times [p]
    values = [np.array(list(table.values())) for table in losses]
    prices = [np.array([s.paths[k] for s in sums]).reshape(len(sums), len(own)).T for k, own in enumerate(paths)]
    alternatives = []
    for index in range(len(cases)):
        own = [of_block[index] for of_block in members]
        budget = np.array([s.limit - s.common[index] for s in sums])
        alternatives.append(
            RatedBlocks([v[i] for v, i in zip(values, own)], [p[i] for p, i in zip(prices, own)], budget)
        )
    for best in combinations(alternatives):
        parts = [own[of_block[best.case][row]] for own, of_block, row in zip(paths, members, best.paths)]
        arch = space.complete({**rest, **{name: value for part in parts for name, value in part.items()}})
        if problem.violation(problem.price([arch]))[0] <= 1:
            yield arch


def _members(block: Block, shared: frozenset[str], cases: Sequence[Arch], paths: Sequence[Arch]) -> list[np.ndarray]:
    """For each assignment of the shared choices, the indices of the block's paths that agree with it."""
    by_common: dict[Arch, list[int]] = {}
    for index, path in enumerate(paths):
        by_common.setdefault(_part(path, shared), []).append(index)
    return [np.array(by_common[_part(case, block.scope)]) for case in cases]


class _Prices:
    """One cost of architectures of which a part is said: the choices `rest`, or else their last values, are the others.

    What was asked once is kept.
    """

    def __init__(self, space: SearchSpace, rest: Mapping[str, Value], cost: Cost) -> None:
        self._space, self._rest, self._cost = space, rest, cost
        self._known: dict[Arch, float] = {}

    def __call__(self, parts: Sequence[Mapping[str, Value]]) -> np.ndarray:
        archs = [self._space.complete({**self._rest, **part}) for part in parts]
        fresh = [arch for arch in dict.fromkeys(archs) if arch not in self._known]
        self._known.update(zip(fresh, map(float, self._cost(fresh)) if fresh else ()))
        return np.array([self._known[arch] for arch in archs])


class _Scale(NamedTuple):
    """What adds up: a cost itself, or its logarithm."""

    to: Callable[[np.ndarray], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray]


SCALES = (_Scale(np.asarray, np.asarray), _Scale(np.log, np.exp))


def _as_sum(prices: _Prices, paths: _Paths, samples: Sequence[Arch], limit: float, name: str) -> _Sum:
    """The cost as a sum, on the scale on which it is one, or else on that on which it is least off, with a warning."""
    found = []
    for scale in SCALES:
        common, added = _path_prices(prices, paths, scale)
        off = _additivity_error(prices, paths, scale, added, samples)
        found.append((off, _Sum(common, added, float(scale.to(limit * (1 + max(2 * off, ROUNDING)))))))
        if off <= ROUNDING:
            return found[-1][1]
    off, best = min(found, key=lambda pair: pair[0])
    logger.warning(
        "%s is no sum over blocks: it is up to %.2g %% off, so the order within the limit rests on samples",
        name,
        100 * off,
    )
    return best


def _path_prices(prices: _Prices, paths: _Paths, scale: _Scale) -> tuple[np.ndarray, list[np.ndarray]]:
    """What the assignments [a] of the shared choices cost, and what each path of each block, K times [p], adds."""
    added = [
        scale.to(prices(table)) - scale.to(prices([_part(path, paths.shared) for path in table]))
        for table in paths.tables
    ]
    return scale.to(prices(paths.cases)), added


def _additivity_error(
    prices: _Prices, paths: _Paths, scale: _Scale, added: Sequence[np.ndarray], samples: Sequence[Arch]
) -> float:
    """The largest relative error of the sum among `samples`."""
    rows = [{path: row for row, path in enumerate(table)} for table in paths.tables]
    own = [
        prices_of_block[[row[block.path(arch)] for arch in samples]]
        for block, row, prices_of_block in zip(paths.blocks, rows, added)
    ]
    total = scale.to(prices([_part(arch, paths.shared) for arch in samples])) + sum(own)
    return float(np.abs(scale.back(total) / prices(samples) - 1).max())


def _part(arch: Arch, names: frozenset[str]) -> Arch:
    return Arch({name: value for name, value in arch.items() if name in names})
