"""Which architectures the limits allow at all, found by looking at costs alone, before anything is evaluated."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from search.problem import Problem
from supernet.space import Arch, SearchSpace

# n architectures, c costs

ENUMERATED = 1000  # spaces up to this size are looked through as a whole


def reachable(problem: Problem, generator: np.random.Generator) -> Arch:
    """An architecture within all limits: the smallest, or else the one that is least near a limit, as far as `minimise`
    finds it. A problem remembers the one that was found, so that nothing is priced again.

    ValueError if `minimise` finds none: it names the smallest reachable value of a limit that cannot be met, or how
    near architectures come to limits that cannot be met together.
    """
    if problem.reachable is not None:
        return problem.reachable
    smallest = problem.space.smallest
    within = problem.violation(problem.price([smallest]))[0] <= 1
    arch, violation = (smallest, 0.0) if within else minimise(problem, problem.violation, generator)
    if violation <= 1:
        problem.reachable = arch
        return arch
    for name, limit in problem.limits.items():
        column = list(problem.costs).index(name)
        _, least = minimise(problem, lambda prices, column=column: prices[:, column], generator)
        if least > limit:
            raise ValueError(
                f"no architecture meets the limit {name} <= {limit:g}; the smallest reachable value is {least:.6g}"
            )
    prices = dict(zip(problem.costs, problem.price([arch])[0]))
    nearest = ", ".join(f"{name} = {prices[name]:.6g} (limit {limit:g})" for name, limit in problem.limits.items())
    raise ValueError(f"each limit can be met, but no architecture meets all of them; the nearest has {nearest}")


def minimise(
    problem: Problem, objective: Callable[[np.ndarray], np.ndarray], generator: np.random.Generator
) -> tuple[Arch, float]:
    """The architecture whose costs have the smallest `objective` ([n, c] -> [n]), and that smallest value.

    Exact in spaces of up to `ENUMERATED` architectures. In larger ones a descent: from the smallest architecture and
    from the best of `ENUMERATED` random ones, to the best neighbour for as long as that lowers the objective.
    """
    space = problem.space
    if space.size <= ENUMERATED:
        starts = _all(space)
    else:
        samples = [space.sample(generator) for _ in range(ENUMERATED)]
        starts = [space.smallest, samples[int(objective(problem.price(samples)).argmin())]]
    values = objective(problem.price(starts))
    if space.size > ENUMERATED:
        starts, values = zip(*(_descend(problem, objective, arch, value) for arch, value in zip(starts, values)))
    best = int(np.argmin(values))
    return starts[best], float(values[best])


def neighbours(space: SearchSpace, arch: Arch) -> list[Arch]:
    """The architectures that differ from `arch` in the value of one choice; choices that this makes active take their
    first value."""
    base = np.maximum(space.encode([arch])[0], 0)
    changed = []
    for column, (name, choice) in enumerate(space.choices.items()):
        if name in arch:
            for code in range(len(choice.values)):
                if code != base[column]:
                    changed.append(base.copy())
                    changed[-1][column] = code
    return space.decode(np.array(changed)) if changed else []


def _descend(
    problem: Problem, objective: Callable[[np.ndarray], np.ndarray], arch: Arch, value: float
) -> tuple[Arch, float]:
    while around := neighbours(problem.space, arch):
        values = objective(problem.price(around))
        if not values.min() < value:
            break
        arch, value = around[int(values.argmin())], float(values.min())
    return arch, value


def _all(space: SearchSpace) -> list[Arch]:
    """Every architecture, reached from the smallest by changing one choice at a time."""
    known = dict.fromkeys([space.smallest])
    queue = list(known)
    while queue:
        fresh = [arch for arch in neighbours(space, queue.pop()) if arch not in known]
        known.update(dict.fromkeys(fresh))
        queue += fresh
    return list(known)
