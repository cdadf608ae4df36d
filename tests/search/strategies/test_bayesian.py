"""Bayesian optimisation finds with few evaluations what random search does not."""

import numpy as np
import pytest

from search.evaluator import evaluate_here
from search.loop import ask_and_tell
from search.problem import Problem
from search.strategies.bayesian import Bayesian, BayesianConfig
from supernet import SearchSpace

SPACE = SearchSpace({f"c{i}": (0, 1, 2, 3) for i in range(8)})  # 65,536


def score(archs):
    """At most 8, where choices are equal to those beside them and the first is 2."""
    return [sum(a[f"c{i}"] == a[f"c{i + 1}"] for i in range(7)) + (a["c0"] == 2) for a in archs]


def size(archs):
    return [1.0 + sum(a.values()) for a in archs]


def test_the_best_within_a_limit_is_found_with_few_evaluations():
    problem = Problem(SPACE, ["score"], {"size": size}, {"size": 20.0}, objectives=["score"])
    strategy = Bayesian(problem, 0, BayesianConfig(children=200, random=50))
    result = ask_and_tell(problem, strategy, evaluate_here({"score": score}), 40)
    best = max(evaluation.scores["score"] for evaluation in result.evaluations)
    assert best >= 7  # of which 20 are within the limit
    assert [list(generation.notes) for generation in result.generations[:2]] == [
        [],
        ["rank_correlation", "error_ratio"],
    ]


def test_with_a_cost_among_the_objectives_both_ends_come_first_and_then_the_front():
    problem = Problem(SPACE, ["score"], {"size": size}, reference={"score": -1.0})
    strategy = Bayesian(problem, 0, BayesianConfig(8, 4, children=200, random=50))
    first = strategy.ask()
    assert first[:2] == [SPACE.smallest, SPACE.largest]
    assert len(set(first)) == 8
    strategy.tell(first, np.array([score(first)]).T)
    batch = strategy.ask()
    assert len(set(batch)) == 4
    assert set(batch).isdisjoint(first)


def test_failed_architectures_teach_nothing():
    problem = Problem(SPACE, ["score"], {"size": size}, objectives=["score"])
    strategy = Bayesian(problem, 0, BayesianConfig(12, 2, children=100, random=20))
    first = strategy.ask()
    strategy.tell(first, np.array([[np.nan] * 8 + score(first[8:])]).T)
    assert len(strategy.ask()) == 2  # too few are known: at random
    assert not strategy.notes


@pytest.mark.parametrize("objectives", [["score"], ["score", "size"]])
def test_a_batch_is_that_of_looking_at_all_candidates_each_time(objectives, monkeypatch):
    """Of some 300 candidates, of which some are not looked at again since they cannot be the best."""
    problem = Problem(SPACE, ["score"], {"size": size}, objectives=objectives, reference={"score": -1.0})
    first = [SPACE.sample(np.random.default_rng(seed)) for seed in range(16)]
    looked_at, promise = [], Bayesian._promise

    def counted(strategy, posterior, candidates, *known):
        looked_at.append(len(candidates))
        return promise(strategy, posterior, candidates, *known)

    monkeypatch.setattr(Bayesian, "_promise", counted)

    def batch(most):
        looked_at.clear()
        monkeypatch.setattr("search.strategies.bayesian.LOOKED_AT", most)
        strategy = Bayesian(problem, 0, BayesianConfig(batch=4, children=150, random=50))
        strategy.tell(first, np.array([score(first)]).T)
        return strategy.ask(), sum(looked_at)

    (lazily, few), (all_each_time, many) = batch(10), batch(10**6)
    assert lazily == all_each_time
    assert len(set(lazily)) == 4
    assert few < many / 2


def test_problems_that_it_is_not_for_are_refused():
    for problem in (Problem(SPACE, ["a", "b"]), Problem(SPACE, ["a"], {"size": size}, objectives=["size"])):
        with pytest.raises(
            ValueError, match=r"the strategy bayesian is for one score that is an objective, .*; take evol"
        ):
            Bayesian(problem)
    with pytest.raises(ValueError, match="batch is a number of architectures, 1 or more, not 0"):
        BayesianConfig(batch=0)
