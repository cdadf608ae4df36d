"""The policy gradient against enumeration, and where the policy goes."""

import itertools

import numpy as np
import pytest
import torch

from search.evaluator import evaluate_here
from search.loop import ask_and_tell
from search.problem import Problem
from search.strategies.controller import Controller
from search.strategies.reinforce import Policy, Reinforce, ReinforceConfig, reinforce_weights
from supernet import Choice, SearchSpace

SPACE = SearchSpace({"a": (0, 1, 2), "b": (0, 1), "c": Choice((0, 1), when={"b": (1,)})})


def reward(arch):
    return 1.0 * arch["a"] ** 2 - 3.0 * arch["b"] + 5.0 * arch.get("c", 0) + (2.0 if arch["a"] == arch["b"] else 0.0)


def probability(policy, arch):
    rows = dict(zip(SPACE.choices, policy.probabilities))
    return np.prod([rows[name][SPACE.choices[name].values.index(value)] for name, value in arch.items()])


@pytest.fixture
def policy():
    policy = Policy(SPACE)
    policy.logits += np.random.default_rng(0).normal(size=policy.logits.shape)
    return policy


def test_probabilities_of_all_architectures_add_up_to_one_and_are_those_drawn(policy):
    archs = list(SPACE)
    probabilities = [probability(policy, arch) for arch in archs]
    assert sum(probabilities) == pytest.approx(1)
    drawn = policy.sample(20000, np.random.default_rng(1))
    shares = [drawn.count(arch) / len(drawn) for arch in archs]
    assert shares == pytest.approx(probabilities, abs=0.015)


@pytest.mark.parametrize("limit", [np.inf, 3.5])
def test_the_expected_gradient_is_that_of_the_expected_reward(policy, limit):
    """Over all pairs that can be drawn within the limit; the other side by differences of the enumerated mean."""
    archs = [arch for arch in SPACE if sum(arch.values()) <= limit]
    rewards = np.array([reward(arch) for arch in archs])

    def within():
        own = np.array([probability(policy, arch) for arch in archs])
        return own / own.sum()

    chances, scores = within(), policy.score_function(archs)
    expected = sum(
        chances[i] * chances[j] * np.tensordot(reinforce_weights(rewards[[i, j]]), scores[[i, j]], axes=1)
        for i, j in itertools.product(range(len(archs)), repeat=2)
    )
    start = policy.logits.copy()
    for index in zip(*np.nonzero(np.isfinite(start))):
        means = []
        for step in (1e-5, -1e-5):
            policy.logits[index] = start[index] + step
            means.append(within() @ rewards)
        policy.logits[index] = start[index]
        assert expected[index] == pytest.approx((means[0] - means[1]) / 2e-5, abs=1e-6), index


def search(problem, config=None, seed=0, budget=2000):
    strategy = Reinforce(problem, seed, config)
    result = ask_and_tell(
        problem, strategy, evaluate_here({"quality": lambda archs: [f(arch) for arch in archs]}), budget
    )
    return strategy, result


def f(arch):
    return sum(value * (1 + index % 3) for index, value in enumerate(arch.values()))


def test_it_goes_to_the_best_within_the_limit_and_never_beyond_it():
    space = SearchSpace({f"c{index}": (0, 1, 2, 3) for index in range(6)})
    problem = Problem(space, ["quality"], {"sum": lambda archs: [sum(arch.values()) for arch in archs]}, {"sum": 9})
    best = max(f(arch) for arch in space if sum(arch.values()) <= 9)
    strategy, result = search(problem)
    assert max(evaluation.scores["quality"] for evaluation in result.evaluations) == best
    assert max(evaluation.costs["sum"] for evaluation in result.evaluations) <= 9
    assert len({evaluation.arch for evaluation in result.evaluations}) == len(result.evaluations) == 2000
    assert strategy.notes["policy_entropy"] < 0.5 < np.log(4)
    archs, logits = strategy.ask(), strategy.policy.logits.copy()  # the policy has nothing new to say
    strategy.tell(archs, np.arange(1000.0, 1000.0 + len(archs))[:, None])
    assert (strategy.policy.logits == logits).all()


def test_it_is_nearly_sure_of_a_single_optimum():
    space = SearchSpace({"a": (0, 1, 2), "b": (0, 1, 2)})
    strategy, _ = search(Problem(space, ["quality"]), ReinforceConfig(lr=0.5))
    assert strategy.policy.probabilities[:, 2].prod() > 0.9


def test_the_same_seed_asks_for_the_same():
    problem = Problem(SearchSpace({f"c{index}": (0, 1, 2) for index in range(5)}), ["quality"])
    first, second = (search(problem, seed=3)[1].evaluations for _ in range(2))
    assert [evaluation.arch for evaluation in first] == [evaluation.arch for evaluation in second]


def test_failures_teach_nothing():
    strategy = Reinforce(Problem(SPACE, ["quality"]))
    archs = strategy.ask()
    strategy.tell(archs, np.full((len(archs), 1), np.nan))
    assert strategy.policy.probabilities[0] == pytest.approx(1 / 3)


@pytest.fixture
def controller():
    return Controller(SPACE, hidden=4, seed=1).double()


def test_a_controllers_probabilities_add_up_to_one_and_are_those_drawn(controller):
    archs = list(SPACE)
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter.mul_(8)
        probabilities = controller.log_probability(archs).exp().numpy()
    assert probabilities.sum() == pytest.approx(1)
    assert probabilities.max() > 1.3 * probabilities.min()
    drawn = controller.sample(20000, np.random.default_rng(1))
    shares = [drawn.count(arch) / len(drawn) for arch in archs]
    assert shares == pytest.approx(probabilities, abs=0.015)


@pytest.mark.parametrize(("limit", "baseline"), [(np.inf, None), (3.5, None), (np.inf, 2.0)])
def test_a_controllers_expected_gradient_is_that_of_the_expected_reward(controller, limit, baseline):
    """Over all pairs that can be drawn; the other side by autograd through the enumerated mean."""
    archs = [arch for arch in SPACE if sum(arch.values()) <= limit]
    rewards = torch.tensor([reward(arch) for arch in archs], dtype=torch.float64)
    logs = controller.log_probability(archs)
    within = logs.softmax(0)
    wanted = torch.autograd.grad(within @ rewards, list(controller.parameters()), retain_graph=True)
    chances, weights = within.detach(), torch.zeros(len(archs), dtype=torch.float64)
    for i, j in itertools.product(range(len(archs)), repeat=2):
        own = reinforce_weights(rewards[[i, j]].numpy(), baseline)
        weights[i] += chances[i] * chances[j] * own[0]
        weights[j] += chances[i] * chances[j] * own[1]
    expected = torch.autograd.grad(weights @ logs, list(controller.parameters()))
    for found, other in zip(expected, wanted):
        torch.testing.assert_close(found, other, atol=1e-12, rtol=1e-9)
    assert max(gradient.abs().max() for gradient in wanted) > 1e-4


def test_a_controller_climbs_to_the_best_within_the_limit_and_never_beyond_it():
    space = SearchSpace({f"c{index}": (0, 1, 2) for index in range(3)})
    problem = Problem(space, ["quality"], {"sum": lambda archs: [sum(arch.values()) for arch in archs]}, {"sum": 4})
    config = ReinforceConfig(batch=8, policy="controller", lr=0.05)
    strategy, result = search(problem, config, budget=200)
    within = [arch for arch in space if sum(arch.values()) <= 4]
    with torch.no_grad():
        chances = strategy.policy.controller.log_probability(within).softmax(0)
    assert within[chances.argmax()] == max(within, key=f)
    assert chances.max() > 0.9
    assert max(evaluation.costs["sum"] for evaluation in result.evaluations) <= 4
    again = search(problem, config, budget=200)[1].evaluations
    assert [evaluation.arch for evaluation in again] == [evaluation.arch for evaluation in result.evaluations]


def test_a_moving_baseline_follows_the_rewards_and_is_refused_within_limits():
    config = ReinforceConfig(batch=4, policy="controller", baseline_decay=0.5)
    strategy = Reinforce(Problem(SPACE, ["quality"]), config=config)
    for step, expected in ((1.0, 1.0), (3.0, 2.0)):
        archs = strategy.ask()
        strategy._known.clear()
        strategy._batch = list(archs)
        strategy.tell(archs, np.full((len(archs), 1), step))
        assert strategy._baseline == expected
    problem = Problem(SPACE, ["quality"], {"sum": lambda archs: [sum(arch.values()) for arch in archs]}, {"sum": 3})
    with pytest.raises(ValueError, match="biased within limits"):
        Reinforce(problem, config=config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"batch": 1}, "at least 2"), ({"lr": 0.0}, "above 0"), ({"baseline_decay": 1.0}, "below 1")],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ReinforceConfig(**settings)
