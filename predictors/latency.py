"""`LatencyPredictor`: how long an architecture takes on one device, from few measurements."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from predictors import additive, pairwise
from predictors.additive import Additive
from predictors.design import most_informative
from predictors.device import Device
from predictors.embedding import Embedding, embedding
from predictors.measurements import positive
from predictors.pairwise import Pairwise
from predictors.sampling import graded
from predictors.transfer import (
    OTHER_SCALES,
    OWN_PARTS,
    OWN_SCALES,
    SPAN_SCALES,
    Cost,
    additive_coefficients,
    components,
    own_components,
)
from supernet.atomic import write_atomically
from supernet.space import Arch, SearchSpace

# n architectures to predict, m measured ones, c choices, v values of all choices, s sources

FILE = "predictor.json"
VERSION = 1
MINIMUM = 8  # measurements
MINIMUM_WITH_SOURCES = 3
FEW = 30  # measurements below which sources, if there are any, are relied on without asking
GRADED = 500  # candidates of all sizes, beside random ones, to suggest from
MOST_PAIRWISE = 1000  # measurements that the effects of pairs are learned from


class Prediction(NamedTuple):
    """Predicted latencies [n] and their standard errors [n], the noise of a measurement included."""

    latency_ms: np.ndarray
    standard_error_ms: np.ndarray


@dataclass(frozen=True)
class _Method:
    """How measurements become a prediction: what `fit` chooses and `save` writes."""

    kind: Literal["additive", "pairwise"]
    logarithmic: bool  # whether the logarithm of the latency is predicted, or itself
    sources: np.ndarray  # [s, v]: additive coefficients of the source devices, s = 0 where they are not used
    log_variances: np.ndarray | None = None  # hyper-parameters of `pairwise`


class LatencyPredictor:
    """The latency in milliseconds of any architecture of `space` on one device.

    A predictor is its measurements and the method that `fit` chose for them; `save` writes these.

    >>> predictor = LatencyPredictor.fit(space, archs, latency_ms)
    >>> predictor.predict([arch]).latency_ms
    """

    def __init__(
        self,
        space: SearchSpace,
        codes: np.ndarray,
        latency_ms: np.ndarray,
        method: _Method,
        device: Device | None = None,
    ):
        self.space = space
        self.codes = codes
        self.latency_ms = latency_ms
        self.device = device
        self.method = method
        self._embedding = embedding(space)
        self._model = _condition(self._embedding, self._embedding.indicators(codes), latency_ms, method)
        # how much larger the errors on left-out measurements are than the model says, held close to 1 if few say so
        targets = np.log(latency_ms) if method.logarithmic else latency_ms
        measured = len(self._model.left_out)
        surprise = (targets[:measured] - self._model.left_out) ** 2 / self._model.left_out_variance
        self._calibration = float(np.sqrt((surprise.sum() + 10) / (measured + 10)))

    @classmethod
    def fit(
        cls,
        space: SearchSpace,
        archs: Sequence[Arch] | np.ndarray,
        latency_ms: Sequence[float],
        sources: Sequence[LatencyPredictor | Cost] = (),
        device: Device | None = None,
        seed: int = 0,
    ) -> LatencyPredictor:
        """The predictor from the measured `latency_ms` of `archs`, given as they are or encoded [m, c].

        `sources` are predictors of other devices on the same space, or any costs, such as MACs: functions from a list
        of architectures to one positive number each. With them, ten measurements go far; `suggest` says which.
        With 30 and more, the method is the one that predicts each measurement best from all others.

        ValueError if there are fewer than 8 measurements, or 3 with sources, if a latency is not positive and finite,
        or if an architecture or a source is not of `space`.
        """
        codes = _codes(space, archs)
        latency = np.array([positive(value) for value in latency_ms])
        if len(codes) != len(latency):
            raise ValueError(f"{len(codes)} architectures but {len(latency)} latencies")
        minimum = MINIMUM_WITH_SOURCES if sources else MINIMUM
        if len(codes) < minimum:
            raise ValueError(f"a predictor needs at least {minimum} measurements, not {len(codes)}")
        shuffled = np.random.default_rng(seed).permutation(len(codes))
        codes, latency = codes[shuffled], latency[shuffled]
        own = embedding(space)
        indicators = own.indicators(codes)
        methods = _transfers(own, sources)
        if len(codes) < FEW and methods:
            return cls(space, codes, latency, methods[0], device)
        methods += [_Method("additive", log, np.zeros((0, own.size))) for log in (True, False)]
        best = _best(cls(space, codes, latency, method, device) for method in methods)
        log = best.method.logarithmic
        methods = [_pairwise(own, indicators, latency, method) for method in methods if method.logarithmic == log]
        return _best([best, *(cls(space, codes, latency, method, device) for method in methods)])

    def predict(self, archs: Sequence[Arch] | np.ndarray) -> Prediction:
        """Latencies and standard errors of `archs`, given as they are or encoded [n, c].

        ValueError for an architecture of another space.
        """
        codes = _codes(self.space, archs)
        mean, variance = self._model.predict(self._embedding.indicators(codes, np.float32))
        error = np.sqrt(variance) * self._calibration
        if self.method.logarithmic:
            return Prediction(np.exp(mean), np.exp(mean) * error)
        return Prediction(np.maximum(mean, self.latency_ms.min() / 10), error)  # positive where it extrapolates

    def cost(self, archs: Sequence[Arch] | np.ndarray) -> np.ndarray:
        """Predicted milliseconds [n], lower is better: a cost for a search."""
        return self.predict(archs).latency_ms

    @property
    def error_percent(self) -> float:
        """Mean absolute relative error, in percent, on each measurement when it is predicted from all others."""
        left_out = self.left_out_ms
        return float(100 * np.abs(left_out / self.latency_ms[: len(left_out)] - 1).mean())

    @property
    def left_out_ms(self) -> np.ndarray:
        """Each measurement as predicted from all others, in the order of `codes`; at times of the first 1,000 alone."""
        return np.exp(self._model.left_out) if self.method.logarithmic else self._model.left_out

    def save(self, directory: str | Path) -> None:
        """Write the predictor to `directory`/predictor.json."""
        content = {
            "version": VERSION,
            "device": self.device and asdict(self.device),
            "space": json.loads(self.space.to_json()),
            "codes": self.codes.tolist(),
            "latency_ms": self.latency_ms.tolist(),
            "kind": self.method.kind,
            "logarithmic": self.method.logarithmic,
            "sources": self.method.sources.tolist(),
            "log_variances": None if self.method.log_variances is None else self.method.log_variances.tolist(),
        }
        with write_atomically(Path(directory) / FILE) as temporary:
            temporary.write_text(json.dumps({"sha256": _digest(content), **content}) + "\n")

    @classmethod
    def load(cls, directory: str | Path, space: SearchSpace | None = None) -> LatencyPredictor:
        """The predictor that `save` wrote.

        ValueError if the file is damaged, edited, of another version, or made for another space than `space`.
        """
        path = Path(directory) / FILE
        try:
            content = json.loads(path.read_text())
            digest = content.pop("sha256")
        except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, TypeError, KeyError):
            raise ValueError(f"{path} is no latency predictor, or damaged: fit and save it again") from None
        if content.get("version") != VERSION:
            raise ValueError(
                f"{path} has version {content.get('version')!r}, this package reads {VERSION}: fit and save it again"
            )
        if digest != _digest(content):
            raise ValueError(f"{path} was edited or damaged after it was saved: fit and save it again")
        own = SearchSpace.from_json(json.dumps(content["space"]))
        if space is not None and space != own:
            raise ValueError(f"{path} is for another search space: {own!r} {own.fingerprint}, not {space.fingerprint}")
        method = _Method(
            content["kind"],
            content["logarithmic"],
            np.array(content["sources"]).reshape(-1, embedding(own).size),
            None if content["log_variances"] is None else np.array(content["log_variances"]),
        )
        device = Device(**content["device"]) if content["device"] else None
        return cls(own, np.array(content["codes"]), np.array(content["latency_ms"]), method, device)

    def suggest(
        self,
        count: int,
        others: Sequence[LatencyPredictor | Cost] = (),
        candidates: Sequence[Arch] | None = None,
    ) -> list[Arch]:
        """The `count` architectures to measure on a new device, with this predictor and `others` as sources.

        See the function `suggest`.
        """
        return suggest(self.space, count, [self, *others], candidates)


def suggest(
    space: SearchSpace,
    count: int,
    sources: Sequence[LatencyPredictor | Cost] = (),
    candidates: Sequence[Arch] | None = None,
) -> list[Arch]:
    """The `count` architectures whose latencies on a new device would say most about those of all others.

    Chosen one by one from `candidates`, by default random architectures and some of all sizes, so that what
    remains uncertain of a random architecture's latency is least (V-optimality), given what the `sources` have in
    common. ValueError if there are fewer candidates than `count`.
    """
    own = embedding(space)
    if candidates is None:
        candidates = own.sample_archs + graded(space, GRADED, np.random.default_rng(0))
    archs = list(dict.fromkeys(candidates))
    if not 1 <= count <= len(archs):
        raise ValueError(f"between 1 and {len(archs)} of the candidates can be suggested, not {count}")
    if transfers := _transfers(own, sources):
        prior = sum(components(own, transfers[0].sources))
    else:
        prior = sum(variance * part for variance, part in zip(OWN_PARTS, own_components(own)))
    return [archs[i] for i in most_informative(own, own.indicators(space.encode(archs)), prior, count)]


def load_devices(directory: str | Path) -> dict[str, LatencyPredictor]:
    """The predictors in `directory`, each in a folder named after its device, by that name.

    ValueError if there is no such folder, or a predictor is damaged.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory} is no folder of latency predictors; scripts/measure_latency.py makes one")
    return {path.parent.name: LatencyPredictor.load(path.parent) for path in sorted(directory.glob(f"*/{FILE}"))}


def _transfers(own: Embedding, sources: Sequence[LatencyPredictor | Cost]) -> list[_Method]:
    """Transfer from the sources in logarithms and in milliseconds, first where the sources are closer to additive.

    Sources that are the same for all architectures say nothing; there is no transfer if none else is left.
    """
    values = [value for source in sources if np.ptp(value := _evaluate(own, source)) > 1e-6 * value.mean()]
    if not values:
        return []
    values = np.array(values)
    fits = {log: additive_coefficients(own, np.log(values) if log else values) for log in (True, False)}
    order = sorted(fits, key=lambda log: fits[log][1])
    return [_Method("additive", log, fits[log][0]) for log in order]


def _evaluate(own: Embedding, source: LatencyPredictor | Cost) -> np.ndarray:
    if isinstance(source, LatencyPredictor):
        if source.space != own.space:
            raise ValueError(f"a source is a predictor for the same space, not for {source.space!r}")
        return source.cost(own.sample_codes)
    return np.array([positive(value) for value in source(own.sample_archs)])


def _pairwise(own: Embedding, indicators: np.ndarray, latency: np.ndarray, additive_method: _Method) -> _Method:
    """The method with the same scale and sources that also knows pairs."""
    part = slice(MOST_PAIRWISE)
    targets = np.log(latency[part]) if additive_method.logarithmic else latency[part]
    tables = _tables(own, additive_method.sources)
    log_variances = pairwise.maximise_evidence(indicators[part], targets, own.centre, tables)
    return replace(additive_method, kind="pairwise", log_variances=log_variances)


def _best(predictors: Iterable[LatencyPredictor]) -> LatencyPredictor:
    return min(predictors, key=lambda predictor: predictor.error_percent)


def _tables(own: Embedding, sources: np.ndarray) -> list[np.ndarray]:
    return [*own.tables, own.scaled(sources.T)] if len(sources) else own.tables


def _condition(own: Embedding, indicators: np.ndarray, latency: np.ndarray, method: _Method) -> Additive | Pairwise:
    targets = np.log(latency) if method.logarithmic else latency
    if method.kind == "pairwise":
        tables = _tables(own, method.sources)
        part = slice(MOST_PAIRWISE)
        return pairwise.condition(indicators[part], targets[part], own.centre, tables, method.log_variances)
    if len(method.sources):
        parts, scales = components(own, method.sources), (SPAN_SCALES, OTHER_SCALES)
    else:
        parts, scales = own_components(own), OWN_SCALES
    return additive.fit(indicators, targets, own.centre, parts, scales)


def _codes(space: SearchSpace, archs: Sequence[Arch] | np.ndarray) -> np.ndarray:
    return embedding(space).check(archs) if isinstance(archs, np.ndarray) else space.encode(archs)


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
