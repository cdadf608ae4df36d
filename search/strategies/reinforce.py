"""A policy over choices that learns by REINFORCE which architectures score high, within limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from search.problem import Problem
from search.strategies.controller import Controller
from search.strategies.proposals import Proposals
from supernet.space import INACTIVE, Arch, SearchSpace

# n architectures, s scores, c choices, v values of the choice that has most

ROUNDS = 100  # of the policy on scores that are known, before it is said to have nothing new to propose


@dataclass(frozen=True)
class ReinforceConfig:
    batch: int = 32  # architectures that a step of the policy is by
    # of the logits, or of Adam for the controller's weights, for rewards in standard deviations of their batch
    lr: float | None = None  # by default 0.2, or 0.01 of the controller
    policy: Literal["independent", "controller"] = "independent"
    # of the moving average of rewards that is the baseline, as in ENAS; None for the mean of the others in the batch
    baseline_decay: float | None = None

    def __post_init__(self):
        if self.batch < 2:
            raise ValueError(f"a step of the policy compares at least 2 architectures, not {self.batch}")
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f"lr is above 0, not {self.lr}")
        if self.baseline_decay is not None and not 0 <= self.baseline_decay < 1:
            raise ValueError(f"baseline_decay is 0 or more and below 1, not {self.baseline_decay}")


class Policy:
    """Independent categorical distributions, one a choice, by `logits` [c, v]; uniform at first.

    The probability of an architecture is the product over its active choices.
    """

    def __init__(self, space: SearchSpace, lr: float = 0.2) -> None:
        self.space, self._lr = space, lr
        sizes = np.array([len(choice.values) for choice in space.choices.values()])
        self.logits = np.where(np.arange(sizes.max()) < sizes[:, None], 0.0, -np.inf)

    @property
    def probabilities(self) -> np.ndarray:
        """Of each value of each choice [c, v]."""
        weights = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def sample(self, count: int, generator: np.random.Generator) -> list[Arch]:
        """Architectures drawn independently."""
        ends = self.probabilities.cumsum(axis=1)
        draws = generator.random((count, len(ends)))
        codes = (draws[:, :, None] >= ends[None, :, :-1]).sum(axis=2)
        return self.space.decode(codes)

    def score_function(self, archs: Sequence[Arch]) -> np.ndarray:
        """The gradient [n, c, v] of each architecture's log probability in the logits."""
        codes = self.space.encode(archs)
        chosen = codes[:, :, None] == np.arange(self.logits.shape[1])
        return np.where((codes != INACTIVE)[:, :, None], chosen - self.probabilities, 0.0)

    def climb(self, archs: Sequence[Arch], weights: np.ndarray) -> None:
        """A step of gradient ascent: by sum_i w_i grad log p(a_i) of architectures and weights [n]."""
        self.logits += self._lr * np.tensordot(weights, self.score_function(archs), axes=1)

    def entropy(self, archs: Sequence[Arch]) -> float:
        """In nats a choice, whatever was drawn."""
        probabilities = self.probabilities
        return float(-(probabilities * np.log(np.where(probabilities > 0, probabilities, 1.0))).sum(axis=1).mean())


class ControllerPolicy:
    """A `Controller` that climbs by Adam."""

    def __init__(self, space: SearchSpace, lr: float = 0.01, seed: int = 0) -> None:
        self.controller = Controller(space, seed=seed)
        self.sample, self.entropy = self.controller.sample, self.controller.entropy
        self._optimizer = torch.optim.Adam(self.controller.parameters(), lr=lr, maximize=True)

    def climb(self, archs: Sequence[Arch], weights: np.ndarray) -> None:
        """As `Policy.climb`."""
        self._optimizer.zero_grad()
        logs = self.controller.log_probability(archs)
        (logs @ torch.from_numpy(weights).to(logs)).backward()
        self._optimizer.step()


def reinforce_weights(rewards: np.ndarray, baseline: float | None = None) -> np.ndarray:
    """Weights w [n] by which sum_i w_i grad log p(a_i) is an unbiased estimate of the gradient of the expected reward,
    from rewards [n] of n drawn architectures: REINFORCE (Williams, 1992).

    w_i = (R_i - mean R) / (n - 1), which has the mean reward of the others as each one's baseline. Where architectures
    were drawn until they were within limits, it is the gradient of the expected reward within the limits: what that
    adds to grad log p is the same for all, and cancels. With a `baseline` that was known before they were drawn,
    w_i = (R_i - baseline) / n, which is unbiased without limits alone.
    """
    if baseline is None:
        return (rewards - rewards.mean()) / (len(rewards) - 1)
    return (rewards - baseline) / len(rewards)


class Reinforce:
    """`ask` for what a `Policy` draws, `tell` the scores, of which the first is the reward.

    This is the search of AKD (Liu et al., CVPR 2020, arXiv 1911.09074) with what differs here: the limits are hard, so
    that architectures beyond them are drawn again, where the paper multiplies the reward by a power of the latency; and
    the policy decides choices independently, unless `config` asks for the recurrent controller of ENAS, which the paper
    has. Rewards are counted in standard deviations of their batch, so that a step does not depend on their unit.

    What was evaluated before is not asked for again, and counts with its score. `notes` holds the `policy_entropy` in
    nats a choice. Once the policy draws nothing new, what is left of a search goes to architectures that are drawn
    uniformly, of which it does not learn. ValueError for a moving baseline with limits, where it would be biased.
    """

    def __init__(self, problem: Problem, seed: int = 0, config: ReinforceConfig | None = None) -> None:
        self.problem = problem
        self.config = config or ReinforceConfig()
        if self.config.baseline_decay is not None and problem.limits:
            raise ValueError("a moving baseline is biased within limits: leave out baseline_decay, or the limits")
        self.policy = _policy(problem.space, self.config, seed)
        self._baseline: float | None = None
        self.notes: dict[str, float] = {}
        self._known: dict[Arch, float] = {}  # rewards, NaN of what failed
        self._batch: list[Arch] = []
        self._is_settled = False  # on what is known
        self._proposals = Proposals(problem)
        self._generator = np.random.default_rng(seed)

    def ask(self) -> list[Arch]:
        """What the next step of the policy needs to know, or what is not known yet when it has drawn nothing new for
        `ROUNDS` steps; empty when all is known."""
        for _ in range(0 if self._is_settled else ROUNDS):
            self._batch = self._draw()
            if fresh := self._proposals.new(self._batch, len(self._batch)):
                return fresh
            if not self._batch:
                break
            self._step()
        self._is_settled |= bool(self._batch)
        self._batch = []
        return self._proposals.sample(self.config.batch, self._generator)

    def tell(self, archs: Sequence[Arch], scores: np.ndarray) -> None:
        """The scores [n, s] of architectures; failed ones, which are NaN, teach the policy nothing."""
        self._known.update(zip(archs, scores[:, 0].tolist()))
        self._step()
        self.notes = {"policy_entropy": self.policy.entropy(self._batch or archs)}

    def _draw(self) -> list[Arch]:
        """A batch that the policy draws within the limits, repeats included; shorter where it hardly draws any."""
        drawn: list[Arch] = []
        for _ in range(ROUNDS):
            tries = self.policy.sample(self.config.batch, self._generator)
            violations = self.problem.violation(self.problem.price(tries))
            drawn += [arch for arch, violation in zip(tries, violations) if violation <= 1]
            if len(drawn) >= self.config.batch:
                break
        return drawn[: self.config.batch]

    def _step(self) -> None:
        """Climb by what is known of the batch."""
        archs = [arch for arch in self._batch if np.isfinite(self._known.get(arch, np.nan))]
        rewards = np.array([self._known[arch] for arch in archs])
        if len(archs) > 1 and (spread := rewards.std()) > 0:
            self.policy.climb(archs, reinforce_weights(rewards, self._baseline) / spread)
        if self.config.baseline_decay is not None and archs:
            former = rewards.mean() if self._baseline is None else self._baseline
            self._baseline = self.config.baseline_decay * former + (1 - self.config.baseline_decay) * rewards.mean()


def _policy(space: SearchSpace, config: ReinforceConfig, seed: int) -> Policy | ControllerPolicy:
    rate = {} if config.lr is None else {"lr": config.lr}
    return Policy(space, **rate) if config.policy == "independent" else ControllerPolicy(space, seed=seed, **rate)
