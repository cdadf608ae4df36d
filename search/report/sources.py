"""What a report is made from: the folders that searches and sweeps write, and what they refer to.

A search's folder holds `search.jsonl`, a sweep's `trials/*.jsonl` and, in `strategies.csv`, how strategies stand.
Beside these, `search.json` says which training run was searched and which latency predictors priced it, so that a
report finds the training curves and the measurements, and how sure the front is that `front.csv` has.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from compress.diagnosis_record import FILE as DIAGNOSIS
from compress.diagnosis_record import read_record
from compress.roofline import FILE as ROOFLINE
from compress.roofline import Roofline
from predictors import LatencyPredictor
from predictors.latency import FILE as PREDICTOR
from predictors.measuring.measurements import Measurement, read_measurements
from predictors.measuring.noise import relative_differences
from search.comparison.results import MEASURED, STANDINGS
from search.history import Evaluation, read_history
from search.report.groups import distinct_names
from search.report.taken_out import TakenOut, read_taken_out
from supernet.artifacts import provenance
from supernet.artifacts.atomic import write_json
from supernet.artifacts.reading import parse_json, parse_lines, read_rows, typed
from supernet.artifacts.runs import read_config
from supernet.space import Arch

HISTORY = "search.jsonl"
TRIALS = "trials"
ORIGIN = "search.json"
FRONT = "front.csv"


class Origin(TypedDict):
    """What search.json says."""

    run: str | None
    predictors: list[str]
    cost: str
    notes: NotRequired[list[str]]  # of which former versions wrote none
    command: NotRequired[str]
    date: NotRequired[str]


class Settings(TypedDict):
    """What a history says of its search, as far as a report shows it."""

    space: NotRequired[Any]
    strategy: NotRequired[str | None]
    score: NotRequired[str | None]
    scores: NotRequired[list[str]]
    objectives: NotRequired[list[str]]
    limits: NotRequired[dict[str, float | None]]
    images: NotRequired[int | None]
    trial: NotRequired[dict[str, Any]]


class Metrics(TypedDict):
    """A line of metrics.jsonl, as far as a report shows it."""

    step: int
    losses: NotRequired[list[float] | None]


@dataclass(frozen=True)
class Search:
    """One search, or one trial of a sweep."""

    name: str
    folder: Path  # what the report was asked for
    history: Path
    settings: Mapping[str, Any]  # what the history says of itself
    evaluations: Sequence[Evaluation]
    run: Path | None  # of the training run, if it is known
    trial: Mapping[str, Any] = field(default_factory=dict)  # strategy, device, limit and seed of a sweep's trial
    front: Mapping[Arch, Mapping[str, str]] = field(default_factory=dict)  # the rows of its front.csv, if there is one
    notes: Sequence[str] = ()  # lines on its front
    origin: Mapping[str, Any] = field(default_factory=dict)  # search.json, if there is one
    taken_out: Mapping[Arch, TakenOut] = field(default_factory=dict)

    @property
    def strategy(self) -> str:
        """What the search went by: the strategy, or the score that comes with a search of its own; both if the score is
        not accuracy. In a sweep, what it is compared as."""
        if "strategy" in self.trial:
            return str(self.trial["strategy"])
        strategy = self.settings.get("strategy", "search")
        score = self.settings.get("score") or "accuracy"
        return str(strategy) if score == "accuracy" else f"{strategy}, {score}" if strategy else str(score)


@dataclass(frozen=True)
class DeviceRecord:
    """What is known of a device: its predictor, by what name searches call its latency, and what was measured."""

    name: str
    predictor: LatencyPredictor
    costs: frozenset[str]
    measurements: Sequence[Measurement] = ()
    roofline: Roofline | None = None  # of the device, where it was measured
    noise_percent: float = math.nan  # mean relative difference of two independent measurements of the same subnets


@dataclass(frozen=True)
class Training:
    """The metrics of a training run, as its metrics.jsonl has them."""

    name: str
    method: str
    metrics: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Sources:
    folders: Sequence[Path]  # what the report was asked for
    searches: Sequence[Search]
    devices: Sequence[DeviceRecord]
    trainings: Sequence[Training]
    runs: Mapping[Path, Mapping[str, Any]]  # config.json of each training run
    standings: Sequence[Mapping[str, str]] = ()  # of strategies by one yardstick, as sweeps wrote them
    diagnoses: Sequence[Mapping[str, Any]] = ()  # of networks on devices, as `supernet diagnose` wrote them


def write_origin(
    folder: Path, run: Path | None, predictors: Sequence[Path], cost: str = "", notes: Sequence[str] = ()
) -> None:
    """Write `search.json`: the training run (None if nothing was trained) and the predictors of a search in `folder`.

    `cost` is what the search calls the latency, if not by the device's name; `notes` are lines on its front, which
    reports repeat. Paths are written relative to `folder`,
    so that folders may be moved together.
    """
    content = {
        "run": os.path.relpath(run, folder) if run else None,
        "predictors": [os.path.relpath(path, folder) for path in predictors],
        "cost": cost,
        "notes": list(notes),
        "command": provenance.command(),
        "date": provenance.today(),
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
    }
    write_json(folder / ORIGIN, content)


def read_sources(folders: Sequence[Path], predictors: Sequence[Path] = (), trainings_alone: bool = False) -> Sources:
    """Everything that the searches and sweeps in `folders` left, with more latency `predictors` if any are given.

    ValueError if a folder holds no search, unless it holds a training run and `trainings_alone` are looked at as well,
    or if something in it is damaged. What a search merely refers to and is no longer there, its training run or a
    predictor, is left out.
    """
    if not folders:
        raise ValueError("name at least one folder of a search or a sweep")
    searches: list[Search] = []
    runs: list[Path] = []
    costs: dict[Path, set[str]] = {Path(os.path.normpath(path)): set() for path in predictors}
    names = distinct_names(folders)
    for folder in folders:
        run, priced, origin = _origin(folder)
        for path in priced:
            costs.setdefault(path, set()).add(origin["cost"])
        if run and trainings_alone and not _holds_a_search(folder):
            runs.append(run)
        else:
            searches += _searches(folder, names[folder], run, origin)
    devices = [record for path, names in costs.items() if (record := _device(path, names, folders))]
    runs = list(dict.fromkeys([*(search.run for search in searches if search.run), *runs]))
    configs = {run: read_config(run) for run in runs if (run / "config.json").exists()}
    return Sources(
        folders,
        searches,
        devices,
        [training for run, config in configs.items() for training in _trainings(run, config)],
        configs,
        [row for folder in folders for row in _standings(folder / STANDINGS)],
        [read_record(folder) for folder in dict.fromkeys([*folders, *runs]) if (folder / DIAGNOSIS).exists()],
    )


def _origin(folder: Path) -> tuple[Path | None, list[Path], Mapping[str, Any]]:
    """The training run, the folders of predictors, and all of search.json."""
    path = folder / ORIGIN
    if not path.exists():
        return (folder if (folder / "config.json").exists() else None), [], {}
    try:
        content = parse_json(path.read_bytes(), Origin)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, or search again") from None
    predictors = [_beside(folder, predictor) for predictor in content["predictors"]]
    there = [predictor for predictor in predictors if (predictor / PREDICTOR).exists()]
    run = _beside(folder, content["run"]) if content["run"] else None
    return run, there, content


def _beside(folder: Path, path: str) -> Path:
    return Path(os.path.normpath(folder / path))


def _searches(folder: Path, name: str, run: Path | None, origin: Mapping[str, Any]) -> list[Search]:
    notes, taken_out = origin.get("notes", []), read_taken_out(folder)
    if (folder / HISTORY).exists():
        settings, evaluations = _history(folder / HISTORY)
        front = _front(folder / FRONT)
        return [Search(name, folder, folder / HISTORY, settings, evaluations, run, {}, front, notes, origin, taken_out)]
    histories = sorted((folder / TRIALS).glob("*.jsonl"))
    if not histories:
        raise ValueError(f"{folder} holds no search and no sweep: there is neither {HISTORY} nor {TRIALS}/ in it")
    found = []
    for history in histories:
        settings, evaluations = _history(history)
        trial = settings.get("trial", {})
        label = " ".join(str(value) for value in trial.values() if value != math.inf)
        named = f"{name} {label}"
        found.append(
            Search(named, folder, history, settings, evaluations, run, trial, origin=origin, taken_out=taken_out)
        )
    return found


def _history(path: Path) -> tuple[Mapping[str, Any], list[Evaluation]]:
    settings, evaluations = read_history(path)
    try:
        return typed(Settings, settings), evaluations
    except ValueError as error:
        raise ValueError(f"{path}, line 1, is damaged: {error}") from None


def _holds_a_search(folder: Path) -> bool:
    return (folder / HISTORY).exists() or any((folder / TRIALS).glob("*.jsonl"))


def _front(path: Path) -> dict[Arch, dict[str, str]]:
    if not path.exists():
        return {}
    try:
        return {Arch.from_json(row["arch"]): row for row in read_rows(path, ("arch",))}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, or search again") from None


def _standings(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    return read_rows(path)


def _device(path: Path, costs: set[str], folders: Sequence[Path]) -> DeviceRecord:
    predictor = LatencyPredictor.load(path)
    name = predictor.device.name if predictor.device else path.name
    files = [path / "measurements.csv"]
    for folder in folders:  # a sweep's own front_DEVICE.csv holds predictions
        files.append((folder if (folder / HISTORY).exists() else folder / MEASURED) / f"front_{name}.csv")
    measurements = [
        row
        for file in files
        if file.exists()
        for row in read_measurements(file, predictor.space)
        if not row.reference and not row.error
    ]
    twice = [path / f"noise_{i}.csv" for i in (1, 2)]
    noise = math.nan
    if all(file.exists() for file in twice):
        noise = 100 * float(np.abs(relative_differences(*(read_measurements(file) for file in twice))).mean())
    roofline = Roofline.load(path) if (path / ROOFLINE).exists() else None
    return DeviceRecord(name, predictor, frozenset({*costs, name}), measurements, roofline, noise)


def _trainings(run: Path, config: Mapping[str, Any]) -> Iterator[Training]:
    """The training of a run, or of each of its phases, which have folders of their own."""
    for path in [*run.glob("metrics.jsonl"), *sorted(run.glob("*/metrics.jsonl"))]:
        text = path.read_bytes()
        metrics = parse_lines(text[: text.rfind(b"\n") + 1].splitlines(), Metrics, path)
        for line in metrics:
            for name, values in line.items():
                if isinstance(values, Mapping):
                    typed(dict[str, float], values, f"{path}: {name}")
        yield Training(path.parent.resolve().name, method_of(config, run), metrics)


def method_of(config: Mapping[str, Any], run: Path) -> str:
    """By what the supernet in the folder `run` was trained; ValueError if its settings do not say."""
    method = typed(dict[str, Any], config["job"].get("train"), f"{run}: job.train").get("method")
    return typed(str, method, f"{run}: job.train.method")
