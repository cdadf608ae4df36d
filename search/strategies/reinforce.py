"""A policy over choices that learns by REINFORCE which architectures score high, within limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search.problem import Problem
from search.strategies.proposals import Proposals
from supernet.space import INACTIVE, Arch, SearchSpace

# n architectures, s scores, c choices, v values of the choice that has most

ROUNDS = 100  # of the policy on scores that are known, before it is said to have nothing new to propose


@dataclass(frozen=True)
class ReinforceConfig:
    batch: int = 32  # architectures that a step of the policy is by
    lr: float = 0.2  # of the logits, for rewards in standard deviations of their batch

    def __post_init__(self):
        if self.batch < 2:
            raise ValueError(f"a step of the policy compares at least 2 architectures, not {self.batch}")
        if not self.lr > 0:
            raise ValueError(f"lr is above 0, not {self.lr}")


class Policy:
    """Independent categorical distributions, one a choice, by `logits` [c, v]; uniform at first.

    The probability of an architecture is the product over its active choices.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
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


def policy_gradient(policy: Policy, archs: Sequence[Arch], rewards: np.ndarray) -> np.ndarray:
    """An unbiased estimate [c, v] of the gradient of the expected reward in the logits, from rewards [n] of n drawn
    architectures.

    1 / (n - 1) sum_i (R_i - mean R) grad log p(a_i): REINFORCE (Williams, 1992) with the mean reward of the others as
    each one's baseline. Where architectures were drawn until they were within limits, it is the gradient of the
    expected reward within the limits: what that adds to grad log p is the same for all, and cancels.
    """
    advantages = rewards - rewards.mean()
    return np.tensordot(advantages, policy.score_function(archs), axes=1) / (len(archs) - 1)


class Reinforce:
    """`ask` for what a `Policy` draws, `tell` the scores, of which the first is the reward.

    This is the search of AKD (Liu et al., CVPR 2020, arXiv 1911.09074) with what differs here: the limits are hard, so
    that architectures beyond them are drawn again, where the paper multiplies the reward by a power of the latency; and
    the policy decides choices independently, where the paper has a recurrent controller. Rewards are counted in
    standard deviations of their batch, so that a step does not depend on their unit.

    What was evaluated before is not asked for again, and counts with its score. `notes` holds the `policy_entropy` in
    nats a choice. The search ends when the policy draws nothing new.
    """

    def __init__(self, problem: Problem, seed: int = 0, config: ReinforceConfig | None = None) -> None:
        self.problem = problem
        self.config = config or ReinforceConfig()
        self.policy = Policy(problem.space)
        self.notes: dict[str, float] = {}
        self._known: dict[Arch, float] = {}  # rewards, NaN of what failed
        self._batch: list[Arch] = []
        self._proposals = Proposals(problem)
        self._generator = np.random.default_rng(seed)

    def ask(self) -> list[Arch]:
        """What the next step of the policy needs to know; empty when it has drawn nothing new for `ROUNDS` steps."""
        for _ in range(ROUNDS):
            self._batch = self._draw()
            if fresh := self._proposals.new(self._batch, len(self._batch)):
                return fresh
            if not self._batch:
                return self._proposals.sample(self.config.batch, self._generator)
            self._step()
        return []

    def tell(self, archs: Sequence[Arch], scores: np.ndarray) -> None:
        """The scores [n, s] of architectures; failed ones, which are NaN, teach the policy nothing."""
        self._known.update(zip(archs, scores[:, 0].tolist()))
        self._step()
        probabilities = self.policy.probabilities
        entropies = -(probabilities * np.log(np.where(probabilities > 0, probabilities, 1.0))).sum(axis=1)
        self.notes = {"policy_entropy": float(entropies.mean())}

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
            self.policy.logits += self.config.lr * policy_gradient(self.policy, archs, rewards / spread)
