"""What policies cost and give, on held-out examples, and the best one within a latency.

Everything here is a function of the logits of all exits, of one forward pass over the examples, so that positions of
exits and thresholds are searched without running the network again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np

from exits.parts import Latencies, cumulative_ms
from exits.policies import Confidence, Entropy, Patience, Policy, exits_taken

# N examples, E exits, K classes

MOST_EXITS = 12  # beyond which not every set of them is tried


@dataclass(frozen=True)
class Tradeoff:
    """How well and how fast a network with exits is under a policy."""

    policy: Policy | None  # None: all examples take the last exit
    accuracy: float  # from 0 to 1; higher is better
    standard_error: float  # of the accuracy, sqrt(a (1 - a) / N)
    latency_ms: float  # mean over the examples
    latency_p95_ms: float  # that 95 % of the examples take at the most
    taken: tuple[float, ...]  # part of the examples that leave at each exit


def tradeoff(
    policy: Policy | None, logits: np.ndarray, labels: np.ndarray, latency_ms: Sequence[float] | np.ndarray
) -> Tradeoff:
    """The trade-off of a policy on examples of known logits [N, E, K] and labels [N].

    `latency_ms` [E] is what it takes to leave at each exit, with all that comes before. The expected latency is its
    mean over the examples, sum_j P(exit = j) latency_j.
    """
    logits, labels, latency_ms = np.asarray(logits), np.asarray(labels), np.asarray(latency_ms, float)
    if logits.ndim != 3 or len(logits) != len(labels) or logits.shape[1] != len(latency_ms):
        raise ValueError(
            f"logits are [N, E, K] for labels [N] and latencies [E], not {list(logits.shape)}, {list(labels.shape)} "
            f"and {list(latency_ms.shape)}"
        )
    taken = exits_taken(policy, logits)
    accuracy = float((logits[np.arange(len(logits)), taken].argmax(axis=1) == labels).mean())
    spent = latency_ms[taken]
    return Tradeoff(
        policy,
        accuracy,
        float(np.sqrt(accuracy * (1 - accuracy) / len(labels))),
        float(spent.mean()),
        float(np.quantile(spent, 0.95, method="inverted_cdf")),
        tuple(float((taken == exit).mean()) for exit in range(logits.shape[1])),
    )


def candidates(logits: np.ndarray, count: int = 20) -> list[Policy]:
    """Policies worth a try: every patience, and thresholds at `count` quantiles of the entropies and of the confidences
    of the exits but the last, so that each lets another part of the examples leave early."""
    log_p = logits[:, :-1] - np.logaddexp.reduce(logits[:, :-1], axis=2, keepdims=True)
    levels = (np.arange(count) + 0.5) / count
    entropies = np.quantile(-(np.exp(log_p) * log_p).sum(axis=2), levels) if log_p.size else []
    confidences = np.quantile(np.exp(log_p.max(axis=2)), levels) if log_p.size else []
    return [
        *(Patience(patience) for patience in range(1, logits.shape[1])),
        *(Entropy(float(value)) for value in entropies),
        *(Confidence(float(min(value, 1.0))) for value in confidences),
    ]


@dataclass(frozen=True)
class Chosen:
    """Which exits a network keeps, counted from 0, and its policy, with what they give on the held-out examples."""

    kept: tuple[int, ...]
    found: Tradeoff


def choose(
    logits: np.ndarray,
    labels: np.ndarray,
    latencies: Latencies,
    limit_ms: float,
    policies: Iterable[Policy] | None = None,
) -> Chosen:
    """The exits and the policy of the highest accuracy on held-out examples whose expected latency is within
    `limit_ms`; of equal ones the fastest.

    Every set of exits is tried that the last exit kept ends, with each of `policies` (by default `candidates` of the
    logits) and with none, by which a network merely ends early. Accuracies on the very examples by which one of many
    was chosen are optimistic: judge the choice on others. ValueError if nothing is within the limit, or if there are
    more than `MOST_EXITS` exits.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    exits = range(logits.shape[1])
    if len(exits) > MOST_EXITS:
        raise ValueError(f"of {len(exits)} exits there are too many sets to try; give at most {MOST_EXITS}")
    policies = list(candidates(logits) if policies is None else policies)
    best: Chosen | None = None
    for kept in chain.from_iterable(combinations(exits, count) for count in range(1, len(exits) + 1)):
        latency_ms, own = cumulative_ms(latencies, kept), logits[:, kept]
        if latency_ms[0] > limit_ms:
            continue
        for policy in [None, *(policies if len(kept) > 1 else ())]:
            found = tradeoff(policy, own, labels, latency_ms)
            if found.latency_ms <= limit_ms and (best is None or rank(found) > rank(best.found)):
                best = Chosen(kept, found)
    if best is None:
        first = cumulative_ms(latencies, (0,))[0]
        raise ValueError(f"not even the first exit is within {limit_ms} ms: it takes {first:.3f} ms")
    return best


def rank(found: Tradeoff) -> tuple[float, float]:
    """What a choice goes by, higher is better: the accuracy, and of equal ones the speed."""
    return found.accuracy, -found.latency_ms
