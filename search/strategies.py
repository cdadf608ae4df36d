"""The strategies by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from search.baselines import LocalSearch, RandomSearch
from search.evolution import Evolution
from search.problem import Problem
from search.run import Strategy
from search.single_objective import SingleObjectiveEvolution, once_for_all, spos

STRATEGIES: Mapping[str, Callable[[Problem, int], Strategy]] = {  # from a problem and a seed
    "evolution": Evolution,
    "once_for_all": lambda problem, seed: SingleObjectiveEvolution(problem, seed, once_for_all()),
    "spos": lambda problem, seed: SingleObjectiveEvolution(problem, seed, spos()),
    "random": RandomSearch,
    "local": LocalSearch,
}


def make_strategy(name: str, problem: Problem, seed: int) -> Strategy:
    """The strategy `name`; ValueError if there is none."""
    if name not in STRATEGIES:
        raise ValueError(f"there is no strategy {name!r}; the strategies are {', '.join(STRATEGIES)}")
    return STRATEGIES[name](problem, seed)
