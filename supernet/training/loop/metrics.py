"""What a training run says of itself as it goes: lines of metrics.jsonl, and what else shows them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

from supernet.artifacts.atomic import set_aside, write_atomically
from supernet.artifacts.reading import parse_json
from supernet.training.execution import DEFAULT, Execution
from supernet.training.loop.trackers import Tracker, require_trackers, trackers

logger = logging.getLogger(__name__)


class Line(TypedDict):
    """What every line has, besides numbers by name."""

    step: int


class Metrics:
    """Appends to `run_dir/metrics.jsonl`, and tells the trackers of `execution` the same.

    Nothing is touched before the first line. Then lines after `step`, which are done again, are dropped, and so is a
    line that was cut off. At the very beginning, with a `step` of 0, what an earlier training left there is kept beside
    it as metrics.jsonl.1, and the log says so. ModuleNotFoundError for a tracker that is not installed.
    """

    def __init__(self, run_dir: Path, step: int, execution: Execution = DEFAULT) -> None:
        self._run_dir, self._path, self._step, self._execution = run_dir, run_dir / "metrics.jsonl", step, execution
        self._trackers: list[Tracker] | None = None
        require_trackers(execution)

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line with a `step`, and numbers, or lists or mappings of them, by name."""
        if self._trackers is None:
            self._trackers = self._begin()
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        values = {name: value for name, value in scalars(line) if name != "step"}
        for tracker in self._trackers:
            tracker.log(line["step"], values)

    def _begin(self) -> list[Tracker]:
        if not self._step:
            if aside := set_aside(self._path):
                logger.warning("what an earlier training wrote to %s is now in %s", self._path, aside.name)
        elif self._path.exists():
            with write_atomically(self._path) as temporary:
                temporary.write_text("".join(_lines_until(self._path, self._step)))
        return trackers(self._run_dir, self._step, self._execution)

    def close(self) -> None:
        for tracker in self._trackers or ():
            tracker.close()


def scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in lists and mappings, one after another, such as ("losses/0", 2.5)."""
    for name, value in values.items():
        if isinstance(value, list):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _lines_until(metrics: Path, step: int) -> list[str]:
    kept = []
    for line in metrics.read_bytes().splitlines():
        try:
            if parse_json(line, Line)["step"] > step:
                break
        except ValueError:  # cut off
            break
        kept.append(line.decode() + "\n")
    return kept
