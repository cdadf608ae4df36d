"""The regressors that latencies are predicted by: what is regressed on what, in which scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from predictors.regression import additive, pairwise
from predictors.regression.additive import Additive
from predictors.regression.embedding import Embedding
from predictors.regression.pairwise import Pairwise
from predictors.transfer import (
    OTHER_SCALES,
    OWN_SCALES,
    SPAN_SCALES,
    additive_coefficients,
    components,
    own_components,
)

# m measurements, v values of all choices, s sources, k architectures of an embedding's sample

MINIMUM = 8  # architectures that must be measured to predict others without sources
FEW = 30  # measurements below which the effects of pairs are not looked for
MOST_PAIRWISE = 1000  # measurements that the effects of pairs are learned from


@dataclass(frozen=True)
class Regressor:
    """How measurements become a prediction, but for the measurements."""

    kind: Literal["additive", "pairwise"]
    logarithmic: bool  # whether the logarithm of the latency is predicted, or itself
    sources: np.ndarray  # [s, v]: additive coefficients of the source devices, s = 0 where they are not used
    log_variances: np.ndarray | None = None  # hyper-parameters of `pairwise`, once it is `tuned`


@dataclass(frozen=True)
class Measured:
    """Measurements of one device, as the regressors see them."""

    embedding: Embedding
    indicators: np.ndarray  # [m, v]
    latency_ms: np.ndarray  # [m]
    architectures: np.ndarray  # [m]: the number of each measurement's architecture, from 0

    def part(self, rows: np.ndarray | slice) -> Measured:
        return replace(
            self,
            indicators=self.indicators[rows],
            latency_ms=self.latency_ms[rows],
            architectures=self.architectures[rows],
        )

    def targets(self, regressor: Regressor) -> np.ndarray:
        return np.log(self.latency_ms) if regressor.logarithmic else self.latency_ms


def source_regressors(embedding: Embedding, latency: Sequence[np.ndarray]) -> list[Regressor]:
    """The regressors that transfer from sources, in logarithms and in milliseconds, given each source's `latency` [k]
    of the embedding's sample.

    A source that is the same for all architectures says nothing; without any other source there is no transfer.
    """
    values = np.array([value for value in latency if np.ptp(value) > 1e-6 * value.mean()])
    if not len(values):
        return []
    fits = {log: additive_coefficients(embedding, np.log(values) if log else values) for log in (True, False)}
    return [Regressor("additive", log, fits[log][0]) for log in sorted(fits, key=lambda log: fits[log][1])]


def applicable(embedding: Embedding, transfers: Sequence[Regressor], count: int) -> list[Regressor]:
    """The regressors that may serve where `count` architectures were measured, each in both scales: with sources,
    without where measurements alone would do, and both again with the effects of pairs where there are enough."""
    found = list(transfers)
    if count >= MINIMUM or not transfers:
        found += [Regressor("additive", log, np.zeros((0, embedding.size))) for log in (True, False)]
    if count >= FEW:
        found += [replace(regressor, kind="pairwise") for regressor in found]
    return found


def tuned(measured: Measured, regressors: Sequence[Regressor]) -> list[Regressor]:
    """The regressors with the hyper-parameters that suit the measurements, looked for near the hyper-parameters that
    they have."""
    part = measured.part(slice(MOST_PAIRWISE))
    found = []
    for regressor in regressors:
        if regressor.kind == "pairwise":
            log_variances = pairwise.maximise_evidence(
                part.indicators,
                part.targets(regressor),
                measured.embedding.centre,
                _tables(measured.embedding, regressor.sources),
                near=regressor.log_variances,
            )
            regressor = replace(regressor, log_variances=log_variances)
        found.append(regressor)
    return found


def condition(measured: Measured, regressor: Regressor) -> Additive | Pairwise:
    """The posterior of the targets of `regressor`."""
    embedding = measured.embedding
    if regressor.kind == "pairwise":
        part = measured.part(slice(MOST_PAIRWISE))
        return pairwise.condition(
            part.indicators,
            part.targets(regressor),
            embedding.centre,
            _tables(embedding, regressor.sources),
            regressor.log_variances,
            part.architectures,
        )
    if len(regressor.sources):
        parts, scales = components(embedding, regressor.sources), (SPAN_SCALES, OTHER_SCALES)
    else:
        parts, scales = own_components(embedding), OWN_SCALES
    return additive.fit(
        measured.indicators, measured.targets(regressor), embedding.centre, parts, scales, measured.architectures
    )


def _tables(embedding: Embedding, sources: np.ndarray) -> list[np.ndarray]:
    return [*embedding.tables, embedding.scaled(sources.T)] if len(sources) else embedding.tables
