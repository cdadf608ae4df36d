"""Measuring subnets on a machine that others use too.

Subnets are measured some at a time, drawn at random. In every round each of them runs for a moment, in a new random
order, and a few reference subnets run between them: what slows the machine down slows these as well, and is divided
out.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from predictors.measuring.load import Watch, doubts
from predictors.measuring.measurements import Measurement, append_measurements, read_measurements
from predictors.measuring.runtimes import Timer
from supernet.artifacts.ownership import owned
from supernet.space import Arch

logger = logging.getLogger(__name__)

# n runs of one visit

MOST_FAILURES = 10  # of reference subnets

FurtherCost = Callable[[Arch, Timer], float]  # of a subnet that is loaded, by its timer


@dataclass(frozen=True)
class MeasuringConfig:
    """How carefully to measure."""

    rounds: int = 15  # visits to each subnet
    visit_ms: float = 8.0  # a visit lasts at least this long, ...
    visit_runs: int = 3  # ... at least so many runs, not counting a first one
    warm_up_ms: float = 1000.0  # at most this long, until successive visits agree to 3 %
    together: int = 16  # subnets in memory at the same time, beside the references
    references: int = 3  # subnets that recur all the way through

    def __post_init__(self):
        if min(self.rounds, self.visit_runs, self.together, self.references) < 1:
            raise ValueError(f"rounds, visit_runs, together and references are at least 1: {self}")


def measure(
    archs: Sequence[Arch],
    prepare: Callable[[Arch], Timer],
    path: str | Path,
    config: MeasuringConfig = MeasuringConfig(),
    seed: int = 0,
    progress: Callable[[int, int], object] = lambda done, total: None,
    further: Mapping[str, FurtherCost] | None = None,
) -> list[Measurement]:
    """Measure the subnets and append them to the CSV file `path` as they are done; returns one row an architecture.

    What the file holds already is not measured again: a run that was killed goes on where it stopped. `prepare` builds,
    converts and loads a subnet, as `runtimes.prepare` does; a subnet that it fails for, or that fails to run, is
    recorded with the reason. `progress` is called with the number of subnets done and of all. `further` says by its
    name how each further cost is measured, after the latencies; a subnet whose row lacks one is measured again.

    Logs that the machine was not quiet, or that a subnet's runs differ much (`predictors.measuring.load`). ValueError
    if none of ten subnets runs, or if another process measures into the same file.
    """
    path = Path(path)
    further = further or {}
    with owned(path.parent, path.name):
        rows = read_measurements(path) if path.exists() else []
        known = {row.arch for row in rows if not row.reference and (row.error or not _lacks(row, further))}
        waiting = [arch for arch in dict.fromkeys(archs) if arch not in known]
        total = len(set(archs))
        progress(total - len(waiting), total)
        if waiting:
            generator = np.random.default_rng([seed, len(rows)])
            waiting = [waiting[i] for i in generator.permutation(len(waiting))]
            references, baseline_ms = _references(rows, waiting, prepare, config)
            watch, before = Watch(), len(rows)
            for start in range(0, len(waiting), config.together):
                batch = waiting[start : start + config.together]
                timers, failed = _load(batch, prepare, config)
                done = _measure_together(timers, references, baseline_ms, config, generator)
                done = [row if row.reference else _with_further(row, timers[row.arch], further) for row in done]
                append_measurements(path, [*done, *failed])
                rows += [*done, *failed]
                baseline_ms = baseline_ms or {row.arch: row.latency_ms for row in done if row.reference}
                progress(total - len(waiting) + start + len(batch), total)
            if doubt := doubts(watch.load(), rows[before:]):
                logger.warning("%s", doubt)
        by_arch = {row.arch: row for row in rows if not row.reference}
        return [by_arch[arch] for arch in archs]


def _lacks(row: Measurement, further: Mapping[str, FurtherCost]) -> bool:
    return any(math.isnan(getattr(row, name)) for name in further)


def _with_further(row: Measurement, steady: _Steady, further: Mapping[str, FurtherCost]) -> Measurement:
    try:
        return row._replace(**{name: float(cost(row.arch, steady.timer)) for name, cost in further.items()})
    except RuntimeError as error:  # of the subnet: whether a cost can be measured at all was asked before
        return Measurement(row.arch, math.nan, error=_reason(error))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


class _Steady:
    """A timer that has been warmed up, and the number of runs that make a visit."""

    def __init__(self, timer: Timer, config: MeasuringConfig):
        self.timer = timer
        self._runs = config.visit_runs
        end = time.perf_counter() + config.warm_up_ms / 1e3
        before, now = math.inf, float(np.median(timer(1 + config.visit_runs)))
        while abs(now / before - 1) > 0.03 and time.perf_counter() < end:
            self._runs = max(config.visit_runs, math.ceil(config.visit_ms / now))
            before, now = now, float(np.median(self.visit()))

    def visit(self) -> np.ndarray:
        """Milliseconds of each run [n]; one more goes before, since another subnet's weights lie in the caches."""
        return self.timer(1 + self._runs)[1:]


def _load(
    archs: Sequence[Arch], prepare: Callable[[Arch], Timer], config: MeasuringConfig
) -> tuple[dict[Arch, _Steady], list[Measurement]]:
    timers, failed = {}, []
    for arch in archs:
        try:
            timers[arch] = _Steady(prepare(arch), config)
        except ModuleNotFoundError:
            raise
        except Exception as error:  # whatever a converter or a runtime raises, it is this subnet's result
            failed.append(Measurement(arch, math.nan, error=_reason(error)))
    return timers, failed


def _references(
    rows: Sequence[Measurement],
    candidates: Sequence[Arch],
    prepare: Callable[[Arch], Timer],
    config: MeasuringConfig,
) -> tuple[dict[Arch, _Steady], dict[Arch, float]]:
    """The reference subnets, those of the file if it has any, and their latencies there."""
    baseline_ms: dict[Arch, float] = {}
    for row in rows:
        if row.reference:
            baseline_ms.setdefault(row.arch, row.latency_ms)
    loaded: dict[Arch, _Steady] = {}
    reasons: list[str] = []
    for arch in list(baseline_ms) or candidates:
        timers, failed = _load([arch], prepare, config)
        loaded |= timers
        reasons += [row.error for row in failed]
        if len(loaded) == config.references or len(reasons) == MOST_FAILURES:
            break
    if not loaded:
        raise ValueError(f"none of {len(reasons)} subnets runs on this device; the last failed with {reasons[-1]}")
    return loaded, baseline_ms


def _measure_together(
    timers: Mapping[Arch, _Steady],
    references: Mapping[Arch, _Steady],
    baseline_ms: Mapping[Arch, float],
    config: MeasuringConfig,
    generator: np.random.Generator,
) -> list[Measurement]:
    """Rows of the references, then of the subnets; without a baseline the references' own medians are it."""
    runs: dict[Arch, list[np.ndarray]] = {arch: [] for arch in timers}
    reference_runs: dict[Arch, list[np.ndarray]] = {arch: [] for arch in references}
    for _ in range(config.rounds):
        for arch, is_reference in _round(list(timers), list(references), generator):
            if is_reference:
                reference_runs[arch].append(references[arch].visit())
            else:
                runs[arch].append(timers[arch].visit())
    medians_ms = {arch: np.median(visits, axis=1) for arch, visits in reference_runs.items()}  # each [rounds]
    baseline_ms = baseline_ms or {arch: float(np.median(visits)) for arch, visits in reference_runs.items()}
    drift = np.median([medians_ms[arch] / baseline_ms[arch] for arch in references], axis=0)  # [rounds]
    typical = float(np.median(drift))
    return [
        *(_summary(arch, np.array(visits), typical, reference=True) for arch, visits in reference_runs.items()),
        *(_summary(arch, np.array(visits) / drift[:, None], typical) for arch, visits in runs.items()),
    ]


def _round(subnets: list[Arch], references: list[Arch], generator: np.random.Generator) -> Iterator[tuple[Arch, bool]]:
    """The subnets in random order with the references, in random order too, at equal distances between them."""
    shares = np.array_split(generator.permutation(len(subnets)), len(references))
    for reference, share in zip(generator.permutation(len(references)), shares):
        yield references[reference], True
        yield from ((subnets[i], False) for i in share)


def _summary(arch: Arch, runs_ms: np.ndarray, drift: float, reference: bool = False) -> Measurement:
    lower, median, upper = np.quantile(runs_ms, (0.25, 0.5, 0.75))
    outliers = int((runs_ms > upper + 3 * (upper - lower)).sum())
    return Measurement(arch, float(median), float(lower), float(upper), runs_ms.size, outliers, drift, reference)
