"""What a worker has done of a job, in the job's folder: the only thing that worker and server tell each other by.

It is written whole or not at all, so that whoever reads it after a crash finds the last state that was reached.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from supernet.artifacts.atomic import write_json
from supernet.artifacts.reading import read_json

FILE = "progress.json"
LOG = "log.txt"
RUNNING, WAITING, DONE, FAILED = "running", "waiting", "done", "failed"
PARTIAL, SKIPPED = "partial", "skipped"  # of a stage alone: what there was when its time was over, and nothing


@dataclass
class StageRecord:
    """How far a stage is."""

    name: str
    state: str
    seconds: float = 0.0  # of all attempts
    core_seconds: float = 0.0  # of attempts that ended, user and system time of all processes
    note: str = ""


@dataclass
class Progress:
    """How far a job is."""

    state: str = RUNNING
    message: str = ""
    stages: list[StageRecord] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> Progress:
        """Of the job in `folder`; nothing is done of one that was never begun. ValueError, naming the file, if it is
        none."""
        path = folder / FILE
        return read_json(path, cls, "progress of a job") if path.exists() else cls()

    def save(self, folder: Path) -> None:
        write_json(folder / FILE, dataclasses.asdict(self), indent=1)

    def of(self, name: str) -> StageRecord:
        """The record of a stage, which is made where there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        self.stages.append(StageRecord(name, RUNNING))
        return self.stages[-1]

    def is_done(self, name: str) -> bool:
        return any(stage.name == name and stage.state in (DONE, PARTIAL, SKIPPED) for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Of the budget that are spent."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def stage(self) -> str:
        """The one that was begun last."""
        return self.stages[-1].name if self.stages else ""
