"""`LatencyPredictor`: how long an architecture takes on one device, from few measurements.

The same serves for further costs that are measured there, energy and peak memory (`predictors.quantities`); what is
called a latency, in milliseconds, is then such a cost, in its unit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from predictors import stored
from predictors.design import most_informative
from predictors.device import Device
from predictors.measuring.measurements import positive
from predictors.quantities import LATENCY, NOUNS, UNITS, check_quantity
from predictors.regression import mixture
from predictors.regression.embedding import Embedding, embedding
from predictors.regression.held_out import HeldOut, error_scale, held_out
from predictors.regression.mixture import Mixture
from predictors.regression.outliers import pulled_in
from predictors.regression.regressors import MINIMUM, Measured, Regressor, applicable, source_regressors, tuned
from predictors.sampling import graded
from predictors.transfer import OWN_PARTS, Cost, components, own_components
from supernet.space import Arch, SearchSpace

# n architectures to predict, m measurements, c choices, s sources

FILE = "predictor.json"  # of the latency; others are named after their quantity
MINIMUM_WITH_SOURCES = 3  # different architectures measured
GRADED = 500  # candidates of all sizes, beside random ones, to suggest from


class Prediction(NamedTuple):
    """Predicted latencies [n] and their standard errors [n], the noise of a measurement included.

    1.96 standard errors on either side hold 95 % of measurements.
    """

    latency_ms: np.ndarray
    standard_error_ms: np.ndarray


class LatencyPredictor:
    """The latency in milliseconds of any architecture of `space` on one device.

    `quantity` says what the numbers are: latency_ms, or a further cost in its unit.
    A predictor is its measurements, the regressors that `fit` chose for them, and each measurement as predicted when
    its architecture is held out; `save` writes these.

    >>> predictor = LatencyPredictor.fit(space, archs, latency_ms)
    >>> predictor.predict([arch]).latency_ms
    """

    def __init__(
        self,
        space: SearchSpace,
        codes: np.ndarray,
        latency_ms: np.ndarray,
        predicted: Mixture,
        found: HeldOut | None = None,
        device: Device | None = None,
        quantity: str = LATENCY,
        fitted_ms: np.ndarray | None = None,
    ):
        """`fit` and `load` make predictors. Without held-out predictions, the mixture's left-out predictions serve
        (`Mixture.left_out`). `fitted_ms` are the latencies with outliers pulled in, if there are any, which the mixture
        is fitted to."""
        self.space = space
        self.codes = codes
        self.latency_ms = latency_ms
        self.fitted_ms = latency_ms if fitted_ms is None else fitted_ms
        self.device = device
        self.quantity = check_quantity(quantity)
        self.mixture = predicted
        self.held_out = found or HeldOut(*predicted.left_out())
        self._embedding = embedding(space)
        self._error_scale = error_scale(_measured(space, codes, latency_ms), self.held_out)

    @classmethod
    def fit(
        cls,
        space: SearchSpace,
        archs: Sequence[Arch] | np.ndarray,
        latency_ms: Sequence[float],
        sources: Sequence[LatencyPredictor | Cost] = (),
        device: Device | None = None,
        seed: int = 0,
        quantity: str = LATENCY,
    ) -> LatencyPredictor:
        """The predictor from the measured `latency_ms` of `archs`, given as they are or encoded [m, c].

        `sources` are predictors of other devices on the same space, or any costs, such as MACs: functions from a list
        of architectures to one positive number each. With them, ten measurements go far; `suggest` says which.
        An architecture may have been measured several times. Errors are those on architectures that a fit has not seen
        (`predictors.regression.held_out`), for which everything is done again ten times. From 200 measurements on,
        outliers are pulled in (`predictors.regression.outliers`); errors count them as they are.

        ValueError if there are fewer than 8 different architectures, or 3 with sources, unless that is the whole
        space, if a latency is not positive and finite, if all are the same, or if an architecture or a source is not
        of `space`.
        """
        codes = _codes(space, archs)
        latency = np.array([positive(value, check_quantity(quantity)) for value in latency_ms])
        if len(codes) != len(latency):
            raise ValueError(f"{len(codes)} architectures but {len(latency)} latencies")
        check_enough(space, codes, latency, bool(sources), quantity)
        shuffled = np.random.default_rng(seed).permutation(len(codes))
        codes, latency = codes[shuffled], latency[shuffled]
        measured = _measured(space, codes, latency)
        transfers = _transfers(embedding(space), sources)
        different = int(measured.architectures.max()) + 1
        regressors = tuned(measured, applicable(measured.embedding, transfers, different))
        common = pulled_in(measured, lambda part: mixture.average(part, regressors))
        if common is not measured:
            regressors = tuned(common, regressors)
        fitted = mixture.average(common, regressors)
        found = held_out(measured, lambda part: mixture.fit(part, regressors), fitted)
        return cls(space, codes, latency, fitted, found, device, quantity, common.latency_ms)

    def predict(self, archs: Sequence[Arch] | np.ndarray) -> Prediction:
        """Latencies and standard errors of `archs`, given as they are or encoded [n, c].

        ValueError for an architecture of another space.
        """
        codes = _codes(self.space, archs)
        latency_ms, error_ms = self.mixture.predict(self._embedding.indicators(codes, np.float32))
        return Prediction(latency_ms, error_ms * self._error_scale)

    def cost(self, archs: Sequence[Arch] | np.ndarray) -> np.ndarray:
        """Predicted milliseconds [n], lower is better: a cost for a search."""
        return self.predict(archs).latency_ms

    @property
    def error_percent(self) -> float:
        """Mean absolute relative error, in percent, on each measurement when its architecture is held out."""
        return float(100 * np.abs(self.held_out_ms / self.latency_ms[: len(self.held_out_ms)] - 1).mean())

    @property
    def held_out_ms(self) -> np.ndarray:
        """Each of the first 1,000 measurements as predicted from those of other architectures, in the order of
        `codes`."""
        return self.held_out.latency_ms

    def save(self, directory: str | Path) -> None:
        """Write the predictor to `directory`: predictor.json, or for a further cost energy_mj.json and the like."""
        content = {
            "quantity": self.quantity,
            "device": self.device and asdict(self.device),
            "space": json.loads(self.space.to_json()),
            "codes": self.codes.tolist(),
            "latency_ms": self.latency_ms.tolist(),
            "fitted_ms": None if self.fitted_ms is self.latency_ms else self.fitted_ms.tolist(),
            "held_out_ms": self.held_out.latency_ms.tolist(),
            "held_out_error_ms": self.held_out.standard_error_ms.tolist(),
            "methods": [
                {
                    "kind": regressor.kind,
                    "logarithmic": regressor.logarithmic,
                    "sources": regressor.sources.tolist(),
                    "log_variances": None if regressor.log_variances is None else regressor.log_variances.tolist(),
                    "weight": float(weight),
                }
                for regressor, weight in zip(self.mixture.regressors, self.mixture.weights)
            ],
        }
        stored.write(file_of(directory, self.quantity), content)

    @classmethod
    def load(cls, directory: str | Path, space: SearchSpace | None = None, quantity: str = LATENCY) -> LatencyPredictor:
        """The predictor of the `quantity` that `save` wrote, now or in an earlier version.

        ValueError if the file is damaged, edited, of a later version, or made for another space than `space`.
        """
        path = file_of(directory, check_quantity(quantity))
        content = stored.read(path)
        if content["quantity"] != quantity:
            raise ValueError(f"{path} predicts {content['quantity']}, not {quantity}: fit and save it again")
        own = SearchSpace.from_json(json.dumps(content["space"]))
        if space is not None and space != own:
            raise ValueError(f"{path} is for another search space: {own!r} {own.fingerprint}, not {space.fingerprint}")
        regressors = [
            Regressor(
                method["kind"],
                method["logarithmic"],
                np.array(method["sources"]).reshape(-1, embedding(own).size),
                None if method["log_variances"] is None else np.array(method["log_variances"]),
            )
            for method in content["methods"]
        ]
        weights = np.array([method["weight"] for method in content["methods"]])
        codes, latency_ms = np.array(content["codes"]), np.array(content["latency_ms"])
        fitted_ms = latency_ms if content["fitted_ms"] is None else np.array(content["fitted_ms"])
        found = None
        if content["held_out_ms"] is not None:
            found = HeldOut(np.array(content["held_out_ms"]), np.array(content["held_out_error_ms"]))
        device = Device(**content["device"]) if content["device"] else None
        predicted = mixture.average(_measured(own, codes, fitted_ms), regressors, weights)
        return cls(own, codes, latency_ms, predicted, found, device, quantity, fitted_ms)

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
    """The `count` architectures whose latencies on a new device would say most about the latencies of all others.

    The smallest and the largest come first, if they are among the `candidates` and more than one is to be suggested;
    in a space without a choice of ordered values, nothing tells which these are. The others are chosen one by one from
    the candidates, by default random architectures and some of all sizes, so that what remains uncertain of the
    latency of a random architecture, or of one of any size, is least (V-optimality), given what the `sources` have in
    common: within tight limits, a search ends among the smallest.
    ValueError if there are fewer candidates than `count`.
    """
    own = embedding(space)
    of_all_sizes = [*graded(space, GRADED, np.random.default_rng(0)), space.smallest, space.largest]
    if candidates is None:
        candidates = own.sample_archs + of_all_sizes
    everywhere, first = own.sample, []
    if any(choice.ordered for choice in space.choices.values()):  # or else nothing tells what is small
        graded_part = own.indicators(space.encode(of_all_sizes))
        everywhere = np.concatenate([own.sample[: len(graded_part)], graded_part])
        first = [space.smallest, space.largest] if count > 1 else []
    archs = list(dict.fromkeys(candidates))
    if not 1 <= count <= len(archs):
        raise ValueError(f"between 1 and {len(archs)} of the candidates can be suggested, not {count}")
    if transfers := _transfers(own, sources):
        prior = sum(components(own, transfers[0].sources))
    else:
        prior = sum(variance * part for variance, part in zip(OWN_PARTS, own_components(own)))
    ends = [archs.index(arch) for arch in dict.fromkeys(first) if arch in archs]
    indicators = own.indicators(space.encode(archs))
    return [archs[i] for i in most_informative(own, indicators, prior, count, everywhere, ends)]


def load_devices(directory: str | Path) -> dict[str, LatencyPredictor]:
    """The predictors in `directory`, each in a folder named after its device, by that name.

    ValueError if there is no such folder, or a predictor is damaged.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory} is no folder of latency predictors; `supernet measure-latency` makes one")
    return {path.parent.name: LatencyPredictor.load(path.parent) for path in sorted(directory.glob(f"*/{FILE}"))}


def file_of(directory: str | Path, quantity: str) -> Path:
    """Where the predictor of a `quantity` lies in the folder of its device."""
    return Path(directory) / (FILE if quantity == LATENCY else f"{quantity}.json")


def check_enough(
    space: SearchSpace, codes: np.ndarray, latency_ms: np.ndarray, with_sources: bool, quantity: str = LATENCY
) -> None:
    """ValueError if these measurements, of architectures with `codes` [m, c], cannot tell one from another."""
    minimum = min(MINIMUM_WITH_SOURCES if with_sources else MINIMUM, space.size)
    different = len(np.unique(codes, axis=0))
    if different < minimum:
        repeats = f" ({len(codes)} measurements, some of the same)" if len(codes) > different else ""
        raise ValueError(
            f"a predictor needs at least {minimum} different architectures measured, not {different}{repeats}"
        )
    if np.ptp(latency_ms) == 0 and quantity != LATENCY:
        raise ValueError(
            f"all {len(latency_ms)} measurements of the {NOUNS[quantity]} are {latency_ms[0]:g} {UNITS[quantity]}, "
            "which says nothing of which architecture takes more: leave it out"
        )
    if np.ptp(latency_ms) == 0:
        raise ValueError(
            f"all {len(latency_ms)} latencies are {latency_ms[0]:g} ms, which says nothing of what makes an "
            "architecture slow: measure with a finer clock, or with more images in one run"
        )


def _transfers(own: Embedding, sources: Sequence[LatencyPredictor | Cost]) -> list[Regressor]:
    return source_regressors(own, [_evaluate(own, source) for source in sources])


def _evaluate(own: Embedding, source: LatencyPredictor | Cost) -> np.ndarray:
    if isinstance(source, LatencyPredictor):
        if source.space != own.space:
            raise ValueError(f"a source is a predictor for the same space, not for {source.space!r}")
        return source.cost(own.sample_codes)
    return np.array([positive(value) for value in source(own.sample_archs)])


def _measured(space: SearchSpace, codes: np.ndarray, latency_ms: np.ndarray) -> Measured:
    own = embedding(space)
    _, first, inverse = np.unique(codes, axis=0, return_index=True, return_inverse=True)
    in_order = np.argsort(np.argsort(first))  # numbered as they occur
    return Measured(own, own.indicators(codes), latency_ms, in_order[inverse.ravel()])


def _codes(space: SearchSpace, archs: Sequence[Arch] | np.ndarray) -> np.ndarray:
    return embedding(space).check(archs) if isinstance(archs, np.ndarray) else space.encode(archs)
