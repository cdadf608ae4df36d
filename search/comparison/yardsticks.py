"""What all searches are judged by, whatever they went by themselves.

supernet     the first metric of the supernet's subnet, recalibrated, on held-out examples
standalone   the same metric of the architecture after a training of its own
table        what was published of it
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from search.problem import Score
from search.scores.judges import settled, supernet_score
from search.scores.trained_alone import TrainedAlone, alone_settings
from search.settings import SAID_ANEW, SearchJob
from search.sweep import Trial, folder_of
from supernet.artifacts.reading import read_rows
from supernet.artifacts.runs import Run
from supernet.families import Family
from supernet.families.nas_bench_201 import from_string as nasbench201_arch
from supernet.families.nas_bench_macro import from_string as nasbench_macro_arch
from supernet.space import Arch
from supernet.training.execution import Execution

PUBLISHED_AS: Mapping[str, Callable[[str], Arch]] = {
    "nasbench201": nasbench201_arch,
    "nasbench_macro": nasbench_macro_arch,
}
"""By the family's name, how an architecture is read that is not written as JSON."""

JUDGED_BY = ("images", "resize_images", "calibration_images", "calibration_bytes")
"""The settings of a search that the accuracy of a supernet's subnet follows from, given the run."""


class Yardstick(NamedTuple):
    """A score that all searches are judged by, and what has to be known of it."""

    name: str  # of its values, in tables and histories
    score: Score
    settings: Mapping[str, object]  # what values follow from, given the run
    known: Mapping[Arch, float] = MappingProxyType({})  # values that need no evaluation
    together: int | None = None  # architectures that a worker gets at a time

    def guided(self, trial: Trial) -> bool:
        """Whether a score of this name in the trial's search is of the yardstick's settings, but for those that may be
        said anew."""
        followed = {name: value for name, value in self.settings.items() if name not in ("yardstick", *SAID_ANEW)}
        return all(name in trial.search and trial.search[name] == value for name, value in followed.items())

    def knowing(self, trials: Sequence[Trial]) -> Yardstick:
        """The yardstick that knows what searches that went by it have evaluated, too."""
        evaluations = [e for trial in trials if self.guided(trial) for e in trial.evaluations]
        found = {e.arch: e.scores[self.name] for e in evaluations if self.name in e.scores}
        return self._replace(known={**self.known, **found})


def by_supernet(job: SearchJob, run: Run) -> Yardstick:
    """The first metric of the run's task, of its recalibrated subnets on held-out examples: what a search by accuracy
    goes by."""
    job = settled(job, run)
    settings = {"yardstick": "supernet"} | {name: getattr(job, name) for name in JUDGED_BY}
    return Yardstick(run.family.task.metric, supernet_score(job, run), settings)


def trained_alone(run: Run, epochs: int, directory: Path, execution: Execution) -> Yardstick:
    """The same metric on the same held-out examples, of the architecture trained alone from scratch for so many
    `epochs`, otherwise as the supernet was. ValueError unless there is at least one epoch.

    Each has a folder in that of the settings in `directory`, where its training goes on if it was stopped.
    """
    if epochs < 1:
        raise ValueError(f"an architecture that is trained alone takes at least 1 epoch, not {epochs}")
    config = alone_settings(run.job.train, epochs)
    settings = {"yardstick": "standalone", "train": dataclasses.asdict(config)}
    score = TrainedAlone(run.family, run.data, config, folder_of(directory, settings), execution)
    return Yardstick(f"{run.family.task.metric}_alone", score, settings, together=1)


def by_table(path: Path, run: Run) -> Yardstick:
    """What the CSV file at `path`, which may be compressed by gzip, publishes of the architectures: higher is better.

    The column `arch` holds JSON objects, or for NAS-Bench-201 and NAS-Bench-Macro their own names of architectures;
    `accuracy` holds the value, or else those that begin with accuracy, such as `accuracy_1`, have the mean of it.
    ValueError if the file is no such table, or of another space.
    """
    known = read_table(path, run.family, PUBLISHED_AS.get(run.job.space, Arch.from_json))
    return Yardstick("published", _unpublished(path), {"yardstick": "table", "table": path.name}, known)


def read_table(path: Path, family: Family, parse: Callable[[str], Arch]) -> dict[Arch, float]:
    """The value of every architecture of the table at `path`; see `by_table`."""
    if not path.is_file():
        raise ValueError(f"there is no table {path}")
    rows = read_rows(path, ("arch",))
    if not rows:
        raise ValueError(f"{path} has no architecture")
    columns = [name for name in rows[0] if name.startswith("accuracy")]
    columns = ["accuracy"] if "accuracy" in columns else columns
    if not columns:
        raise ValueError(f"{path} needs the columns arch and accuracy, and has {', '.join(rows[0])}")
    found: dict[Arch, float] = {}
    for line, row in enumerate(rows, start=2):
        try:
            if not row["arch"]:
                raise ValueError("the row is too short: it has no arch")
            arch = Arch.from_json(row["arch"]) if row["arch"].startswith("{") else parse(row["arch"])
            value = sum(float(row[name]) for name in columns) / len(columns)
            family.space.validate(arch)
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from None
        if not math.isfinite(value):
            raise ValueError(f"{path}, line {line}: the accuracy is {value}")
        found[arch] = value
    return found


def _unpublished(path: Path) -> Score:
    def missing(archs: Sequence[Arch]) -> list[float]:
        raise ValueError(f"{path.name} has no such architecture")

    return missing
