"""`LatencyPredictor`: how long an architecture takes on one device, from few measurements."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from predictors import gaussian_process
from predictors.device import Device
from predictors.embedding import embedding
from predictors.gaussian_process import GaussianProcess
from predictors.measurements import positive
from supernet.atomic import write_atomically
from supernet.space import Arch, SearchSpace

# n architectures to predict, m measured ones, c choices

FILE = "predictor.json"
VERSION = 1
MINIMUM = 8  # measurements


class Prediction(NamedTuple):
    """Predicted latencies [n] and their standard errors [n], the noise of a measurement included."""

    latency_ms: np.ndarray
    standard_error_ms: np.ndarray


class LatencyPredictor:
    """The latency in milliseconds of any architecture of `space` on one device.

    A predictor is its measurements and the hyper-parameters that `fit` found; `save` writes these.

    >>> predictor = LatencyPredictor.fit(space, archs, latency_ms)
    >>> predictor.predict([arch]).latency_ms
    """

    def __init__(
        self,
        space: SearchSpace,
        codes: np.ndarray,
        latency_ms: np.ndarray,
        process: GaussianProcess,
        logarithmic: bool,
        device: Device | None = None,
    ):
        self.space = space
        self.codes = codes
        self.latency_ms = latency_ms
        self.device = device
        self.logarithmic = logarithmic
        self._process = process
        self._prepare()

    @classmethod
    def fit(
        cls,
        space: SearchSpace,
        archs: Sequence[Arch] | np.ndarray,
        latency_ms: Sequence[float],
        device: Device | None = None,
        seed: int = 0,
    ) -> LatencyPredictor:
        """The predictor from the measured `latency_ms` of `archs`, given as they are or encoded [m, c].

        ValueError if there are fewer than 8 measurements, a latency is not positive and finite, or an architecture is
        none of `space`.
        """
        codes = _codes(space, archs)
        latency = np.array([positive(value) for value in latency_ms])
        if len(codes) != len(latency):
            raise ValueError(f"{len(codes)} architectures but {len(latency)} latencies")
        if len(codes) < MINIMUM:
            raise ValueError(f"a predictor needs at least {MINIMUM} measurements, not {len(codes)}")
        points = embedding(space).points(codes)
        fits = []
        for logarithmic in (True, False):
            targets = np.log(latency) if logarithmic else latency
            process = gaussian_process.fit(points, targets, seed)
            left_out = process.leave_one_out(targets)
            left_out = np.exp(left_out) if logarithmic else left_out
            fits.append((float(np.abs(left_out / latency - 1).mean()), process, logarithmic))
        _, process, logarithmic = min(fits, key=lambda fit: fit[0])
        return cls(space, codes, latency, process, logarithmic, device)

    def predict(self, archs: Sequence[Arch] | np.ndarray) -> Prediction:
        """Latencies and standard errors of `archs`, given as they are or encoded [n, c].

        ValueError for an architecture of another space.
        """
        codes = _codes(self.space, archs)
        indicators = self._embedding.indicators(codes, np.float32)
        additive = indicators @ self._to_measured - self._offset  # l(x, x_m)
        kernel = 1 + additive + self._pairs * additive**2
        mean = kernel @ self._dual + self._process.mean
        own = sum(a * ((indicators @ t - c) ** 2).sum(axis=1) for a, t, c in self._views)
        explained = np.einsum("nm,nm->n", kernel @ self._inverse, kernel)
        variance = np.maximum(1 + own + self._pairs * own**2 - explained, 0) + self._noise
        error = np.sqrt(variance).astype(float) * self._process.scale * self._calibration
        mean = mean.astype(float)
        if self.logarithmic:
            return Prediction(np.exp(mean), np.exp(mean) * error)
        return Prediction(np.maximum(mean, 1e-9), error)

    def cost(self, archs: Sequence[Arch] | np.ndarray) -> np.ndarray:
        """Predicted milliseconds [n], lower is better: a cost for a search."""
        return self.predict(archs).latency_ms

    def save(self, directory: str | Path) -> None:
        """Write the predictor to `directory`/predictor.json."""
        content = {
            "version": VERSION,
            "device": self.device and asdict(self.device),
            "space": json.loads(self.space.to_json()),
            "codes": self.codes.tolist(),
            "latency_ms": self.latency_ms.tolist(),
            "logarithmic": self.logarithmic,
            "log_variances": self._process.log_variances.tolist(),
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
        codes, latency = np.array(content["codes"]), np.array(content["latency_ms"])
        targets = np.log(latency) if content["logarithmic"] else latency
        process = gaussian_process.condition(embedding(own).points(codes), targets, np.array(content["log_variances"]))
        device = Device(**content["device"]) if content["device"] else None
        return cls(own, codes, latency, process, content["logarithmic"], device)

    def _prepare(self) -> None:
        """What `predict` needs, in single precision."""
        process = self._process
        variances = np.exp(process.log_variances)
        self._embedding = embedding(self.space)
        points = self._embedding.points(self.codes)
        views = list(zip(variances, self._embedding.tables, self._embedding.centres, points))
        self._to_measured = sum(a * (t @ p.T) for a, t, _, p in views).astype(np.float32)  # [v, m]
        self._offset = sum(a * (p @ c) for a, _, c, p in views).astype(np.float32)  # [m]
        self._views = [(a, t.astype(np.float32), c.astype(np.float32)) for a, t, c, _ in views]
        self._pairs, self._noise = np.float32(variances[-2]), variances[-1]
        self._dual = process.dual * process.scale
        self._inverse = process.inverse.astype(np.float32)
        # how much larger the errors on left-out measurements are than the process says
        targets = np.log(self.latency_ms) if self.logarithmic else self.latency_ms
        left_out = (targets - process.leave_one_out(targets)) / process.scale
        self._calibration = float(np.sqrt((left_out**2 * process.inverse.diagonal()).mean()))


def _codes(space: SearchSpace, archs: Sequence[Arch] | np.ndarray) -> np.ndarray:
    return embedding(space).check(archs) if isinstance(archs, np.ndarray) else space.encode(archs)


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
