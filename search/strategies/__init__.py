"""The strategies by name: how a space is searched, whatever judges its architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from search.loop import Strategy
from search.problem import Problem
from search.strategies.baselines import LocalSearch, RandomSearch
from search.strategies.evolution import Evolution, EvolutionConfig
from search.strategies.reinforce import Reinforce, ReinforceConfig
from search.strategies.single_objective import SingleObjectiveEvolution, once_for_all, spos


def _screened(problem: Problem, seed: int, size: int) -> Strategy:
    from search.strategies.screening import ScreenedEvolution  # its predictors take seconds to import

    return ScreenedEvolution(problem, seed, EvolutionConfig(size))


def _bayesian(problem: Problem, seed: int, size: int) -> Strategy:
    from search.strategies.bayesian import Bayesian, BayesianConfig  # its predictors, too

    return Bayesian(problem, seed, BayesianConfig(batch=max(size // 4, 1)))


# ways to search a space, from a problem, a seed, and how many architectures a generation has, more or less
STRATEGIES: Mapping[str, Callable[[Problem, int, int], Strategy]] = {
    "evolution": lambda problem, seed, size: Evolution(problem, seed, EvolutionConfig(size)),
    "screened": _screened,
    "bayesian": _bayesian,
    "once_for_all": lambda problem, seed, size: SingleObjectiveEvolution(problem, seed, once_for_all(size)),
    "spos": lambda problem, seed, size: SingleObjectiveEvolution(problem, seed, spos()),
    "reinforce": lambda problem, seed, size: Reinforce(problem, seed, ReinforceConfig(max(size, 2))),
    "reinforce_controller": lambda problem, seed, size: Reinforce(
        problem, seed, ReinforceConfig(max(size, 2), policy="controller")
    ),
    "random": RandomSearch,
    "local": lambda problem, seed, size: LocalSearch(problem, seed),
}


GLOBAL_THRESHOLD = "global_threshold"
"""The strategy that follows from the weights of the supernet, and is made where these are known (`search.run`)."""
NAMES = (*STRATEGIES, GLOBAL_THRESHOLD)


def make_strategy(name: str, problem: Problem, seed: int, size: int = 100) -> Strategy:
    """The strategy `name`, with generations of `size` architectures; ValueError if there is no such strategy."""
    check_strategy(name)
    return STRATEGIES[name](problem, seed, size)


def check_strategy(name: str) -> None:
    """ValueError unless there is a strategy `name`."""
    if name not in NAMES:
        raise ValueError(f"there is no strategy {name!r}; the strategies are {', '.join(NAMES)}")
