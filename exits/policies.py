"""When an example leaves: by patience, entropy or confidence. NumPy alone, as the runner on a device needs no more.

A policy says for every exit whether it would stop there, from the logits of this and the earlier exits. An example
leaves at the first exit that stops, and in any case at the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np

# N examples, E exits, K classes


class Policy(Protocol):
    """A rule, with its threshold, for when to stop."""

    def stops(self, logits: np.ndarray) -> np.ndarray:
        """Whether each exit would stop, [N, E], given the logits of all exits up to it, [N, E, K]."""
        ...


@dataclass(frozen=True)
class Patience:
    """PABEE (Zhou et al., NeurIPS 2020, arXiv 2006.04152, section 3.3): stop when `patience` exits in a row each agree
    with the exit before it.

    Exits agree if they predict the same class, or, with a `tolerance`, for regression with one output, if they differ
    by less than that.
    """

    patience: int
    tolerance: float | None = None

    def __post_init__(self):
        if self.patience < 1:
            raise ValueError(f"patience is a number of exits, at least 1, not {self.patience}")

    def stops(self, logits: np.ndarray) -> np.ndarray:
        if self.tolerance is None:
            classes = logits.argmax(axis=2)
            agrees = classes[:, 1:] == classes[:, :-1]
        else:
            agrees = np.abs(np.diff(logits[..., 0], axis=1)) < self.tolerance
        count, stops = np.zeros(len(logits), int), np.zeros(logits.shape[:2], bool)
        for exit in range(1, logits.shape[1]):
            count = np.where(agrees[:, exit - 1], count + 1, 0)
            stops[:, exit] = count >= self.patience
        return stops


@dataclass(frozen=True)
class Entropy:
    """DeeBERT (Xin et al., ACL 2020, arXiv 2004.12993) and BranchyNet (Teerapittayanon et al. 2016, arXiv 1709.01686):
    stop where the entropy of the prediction, -sum p ln p in nats, is below a threshold."""

    entropy: float

    def __post_init__(self):
        if self.entropy < 0:
            raise ValueError(f"an entropy is 0 or more, in nats, not {self.entropy}")

    def stops(self, logits: np.ndarray) -> np.ndarray:
        log_p = _log_softmax(logits)
        return -(np.exp(log_p) * log_p).sum(axis=2) < self.entropy


@dataclass(frozen=True)
class Confidence:
    """Stop where the highest probability is above a threshold."""

    confidence: float

    def __post_init__(self):
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"a confidence is a probability, not {self.confidence}")

    def stops(self, logits: np.ndarray) -> np.ndarray:
        return np.exp(_log_softmax(logits).max(axis=2)) > self.confidence


POLICIES: dict[str, Callable[..., Policy]] = {"patience": Patience, "entropy": Entropy, "confidence": Confidence}


def exits_taken(policy: Policy | None, logits: np.ndarray) -> np.ndarray:
    """The exit [N], counted from 0, at which each example leaves, given the logits [N, E, K] of all exits; without a
    policy the last."""
    logits = np.asarray(logits)
    stops = np.zeros(logits.shape[:2], bool) if policy is None else policy.stops(logits)
    stops[:, -1] = True
    return stops.argmax(axis=1)


def to_json(policy: Policy | None) -> dict[str, object] | None:
    """A policy as `from_json` reads it."""
    if policy is None:
        return None
    name = next(name for name, kind in POLICIES.items() if type(policy) is kind)
    return {"policy": name, **asdict(policy)}


def from_json(content: dict[str, object] | None) -> Policy | None:
    """The policy that `to_json` wrote; ValueError if it is no such thing."""
    if content is None:
        return None
    try:
        settings = {name: value for name, value in content.items() if name != "policy"}
        if any(isinstance(value, str | bool | list | dict) for value in settings.values()):
            raise TypeError("settings are numbers")
        return POLICIES[content["policy"]](**settings)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{content} is no policy; there are {', '.join(POLICIES)}") from error


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.asarray(logits, np.float64) - logits.max(axis=2, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=2, keepdims=True))
