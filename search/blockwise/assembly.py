"""Architectures from the rated paths of their blocks: the best ones first, within limits on any costs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from search.blockwise.blocks import Block
from search.blockwise.traversal import Blocks, combinations
from search.prefix.scopes import all_archs, complete, subspace
from search.problem import Cost, Problem
from supernet.space import Arch, SearchSpace, Value

# K blocks, p paths of a block, a assignments of what blocks have in common, c costs

logger = logging.getLogger(__name__)

ROUNDING = 1e-6  # relative: costs that are off by no more add up; predictors sum in single precision
SAMPLES = 500  # random architectures that tell how far a cost is off


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
    cases = list(all_archs(subspace(space, shared))) if shared else [Arch({})]
    paths = [list(table) for table in losses]
    sums = [
        _as_sum(space, rest, blocks, shared, cases, paths, problem.costs[name], limit, name)
        for name, limit in problem.limits.items()
    ]
    members = [_members(block, shared, cases, own) for block, own in zip(blocks, paths)]  # K times a times [p]
    values = [np.array(list(table.values())) for table in losses]
    prices = [np.array([s.paths[k] for s in sums]).reshape(len(sums), len(own)).T for k, own in enumerate(paths)]
    alternatives = []
    for index in range(len(cases)):
        own = [of_block[index] for of_block in members]
        budget = np.array([s.limit - s.common[index] for s in sums])
        alternatives.append(Blocks([v[i] for v, i in zip(values, own)], [p[i] for p, i in zip(prices, own)], budget))
    for best in combinations(alternatives):
        parts = [own[of_block[best.case][row]] for own, of_block, row in zip(paths, members, best.paths)]
        arch = complete(space, {**rest, **{name: value for part in parts for name, value in part.items()}})
        if problem.violation(problem.price([arch]))[0] <= 1:
            yield arch


def _members(block: Block, shared: frozenset[str], cases: Sequence[Arch], paths: Sequence[Arch]) -> list[np.ndarray]:
    """For each assignment of the shared choices, the indices of the block's paths that agree with it."""
    by_common: dict[Arch, list[int]] = {}
    for index, path in enumerate(paths):
        by_common.setdefault(_part(path, shared), []).append(index)
    return [np.array(by_common[_part(case, block.scope)]) for case in cases]


def _as_sum(
    space: SearchSpace,
    rest: Mapping[str, Value],
    blocks: Sequence[Block],
    shared: frozenset[str],
    cases: Sequence[Arch],
    paths: Sequence[Sequence[Arch]],
    cost: Cost,
    limit: float,
    name: str,
) -> _Sum:
    known: dict[Arch, float] = {}

    def values(parts: Sequence[Arch]) -> np.ndarray:
        archs = [complete(space, {**rest, **part}) for part in parts]
        fresh = [arch for arch in dict.fromkeys(archs) if arch not in known]
        known.update(zip(fresh, map(float, cost(fresh)) if fresh else ()))
        return np.array([known[arch] for arch in archs])

    common, own = values(cases), [values(table) for table in paths]
    own_common = [values([_part(path, shared) for path in table]) for table in paths]
    generator = np.random.default_rng(0)
    rated = frozenset(choice for block in blocks for choice in block.scope)
    samples = [_part(space.sample(generator), rated) for _ in range(SAMPLES)]
    true, sampled_common = values(samples), values([_part(arch, shared) for arch in samples])
    rows = [
        [{path: row for row, path in enumerate(table)}[p] for p in map(block.path, samples)]
        for block, table in zip(blocks, paths)
    ]
    found = []
    for forward, back in ((np.asarray, np.asarray), (np.log, np.exp)):
        added = [forward(a) - forward(b) for a, b in zip(own, own_common)]
        total = forward(sampled_common) + sum(table[row] for table, row in zip(added, rows))
        off = float(np.abs(back(total) / true - 1).max())
        found.append((off, _Sum(forward(common), added, float(forward(limit * (1 + max(2 * off, ROUNDING)))))))
        if off <= ROUNDING:
            return found[-1][1]
    off, best = min(found, key=lambda pair: pair[0])
    logger.warning(
        "%s is no sum over blocks: it is up to %.2g %% off, so the order within the limit rests on samples",
        name,
        100 * off,
    )
    return best


def _part(arch: Arch, names: frozenset[str]) -> Arch:
    return Arch({name: value for name, value in arch.items() if name in names})
