"""What other devices say about a new one: prior covariances of additive latencies.

The coefficients w[c, value] of a new device are expected to be, in part each,
- `span`: a combination of the source devices' coefficients;
- `by_value`: such a combination, with each value of the choices that share it weighed anew (an operation runs better
  or worse here);
- `by_profile`: a product of a profile over choices and one over values, both like the sources' (matrix normal);
- `free`: anything.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from predictors.regression.embedding import Embedding
from supernet.families import Family
from supernet.space import Arch

# s sources, v values of all choices, g choices that share their values, o of these values

Cost = Callable[[Sequence[Arch]], Sequence[float] | np.ndarray]  # lower is better, positive

# Chosen on the validation devices of benchmarks/latency_prediction.py: parts of the prior, and what they are varied by
PARTS = {"span": 0.25, "by_value": 0.05, "by_profile": 0.5, "free": 0.0025}
SPAN_SCALES = (1.0, 5.0, 25.0)
OTHER_SCALES = (0.1, 0.3, 1.0)
OWN_SCALES = ((0.1, 1.0), (0.1, 1.0), (0.003, 0.1))  # without sources, of each part in `own_components`
OWN_PARTS = (0.3, 0.5, 0.05)  # the same before anything is measured


def additive_coefficients(embedding: Embedding, latency: np.ndarray) -> tuple[np.ndarray, float]:
    """The least-squares coefficients [s, v] of `latency` [s, n] at the embedding's random architectures, and the part
    of the variance that they leave unexplained, on average over the sources."""
    centred = embedding.sample - embedding.centre
    targets = latency - latency.mean(axis=1, keepdims=True)
    gram = centred.T @ centred + 1e-3 * len(centred) * np.eye(centred.shape[1]) / centred.shape[1]
    coefficients = np.linalg.solve(gram, centred.T @ targets.T).T
    unexplained = ((targets - coefficients @ centred.T) ** 2).sum(axis=1) / (targets**2).sum(axis=1)
    return coefficients, float(unexplained.mean())


def components(embedding: Embedding, coefficients: np.ndarray) -> list[np.ndarray]:
    """The prior covariances [v, v] of `span` and of all else, from the sources' `coefficients` [s, v].

    Each part predicts random architectures with the variance in PARTS.
    """
    covariance = embedding.covariance
    scale = np.sqrt(((coefficients @ covariance) * coefficients).sum(axis=1))
    unit = coefficients / scale[:, None]
    span = unit.T @ unit
    by_value, by_profile = np.zeros_like(span), np.zeros_like(span)
    for rows in embedding.groups:  # [g, o]
        cells = np.ix_(rows.ravel(), rows.ravel())
        same_value = np.tile(np.eye(rows.shape[1]), (len(rows), len(rows)))
        by_value[cells] = span[cells] * same_value
        profiles = unit[:, rows]  # [s, g, o]
        over_choices = np.einsum("sgo,sho->gh", profiles, profiles)
        over_values = np.einsum("sgo,sgp->op", profiles, profiles)
        by_profile[cells] = np.kron(over_choices, over_values) / (np.trace(over_choices) or 1.0)
    parts = {"span": span, "by_value": by_value, "by_profile": by_profile, "free": np.eye(len(span))}
    scaled = {name: PARTS[name] * part / (part * covariance).sum() for name, part in parts.items()}
    return [scaled.pop("span"), sum(scaled.values())]


def own_components(embedding: Embedding) -> list[np.ndarray]:
    """The prior covariances [v, v] without sources, one for each view of an `Embedding`: how often each value occurs,
    the values as numbers, and each value by itself."""
    return [table @ table.T for table in embedding.tables]


def family_costs(family: Family) -> list[Cost]:
    """MACs and parameters of a family's architectures, each counted once: sources that cost nothing."""
    return [_of_all(functools.cache(family.macs)), _of_all(functools.cache(family.parameters))]


def _of_all(count: Callable[[Arch], int]) -> Cost:
    return lambda archs: [count(arch) for arch in archs]
