"""What a training run says of itself as it goes: lines of metrics.jsonl, and TensorBoard's files if they are wanted."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

from supernet.artifacts.atomic import set_aside, write_atomically
from supernet.artifacts.reading import parse_json
from supernet.imports import require

logger = logging.getLogger(__name__)


class Line(TypedDict):
    """What every line has, besides numbers by name."""

    step: int


class Metrics:
    """Appends to `run_dir/metrics.jsonl`, and with `tensorboard` writes the same to `run_dir/tensorboard/`.

    Nothing is touched before the first line. Then lines after `step`, which are done again, are dropped from both, and
    so is a line that was cut off. At the very beginning, with a `step` of 0, what an earlier training left there is
    kept beside it as metrics.jsonl.1 and tensorboard.1, and the log says so.
    """

    def __init__(self, run_dir: Path, step: int, tensorboard: bool = False) -> None:
        self._path, self._events, self._step = run_dir / "metrics.jsonl", run_dir / "tensorboard", step
        self._tensorboard = tensorboard
        self._writer = None
        self._begun = False
        if tensorboard:
            require("tensorboard")

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line with a `step`, and numbers, or lists or mappings of them, by name."""
        if not self._begun:
            self._begin()
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._writer:
            for name, value in scalars(line):
                if name != "step":
                    self._writer.add_scalar(name, value, line["step"])
            self._writer.flush()

    def _begin(self) -> None:
        self._begun = True
        if not self._step:
            for path in (self._path, self._events):
                if aside := set_aside(path):
                    logger.warning("what an earlier training wrote to %s is now in %s", path, aside.name)
        elif self._path.exists():
            with write_atomically(self._path) as temporary:
                temporary.write_text("".join(_lines_until(self._path, self._step)))
        if self._tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._events), purge_step=self._step + 1)

    def close(self) -> None:
        if self._writer:
            self._writer.close()


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
