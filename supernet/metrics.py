"""What a training run says of itself as it goes: lines of metrics.jsonl, and TensorBoard's files if they are wanted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from supernet.atomic import write_atomically
from supernet.extras import require


class Metrics:
    """Appends to `run_dir/metrics.jsonl`, and with `tensorboard` writes the same to `run_dir/tensorboard/`.

    Lines after `step`, which are about to be done again, are dropped from both, and so is a line that was cut off.
    """

    def __init__(self, run_dir: Path, step: int, tensorboard: bool = False) -> None:
        self._path = run_dir / "metrics.jsonl"
        self._writer = None
        if tensorboard:
            require("tensorboard")
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)
        if self._path.exists():
            with write_atomically(self._path) as temporary:
                temporary.write_text("".join(_lines_until(self._path, step)))

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line with a `step`, and numbers, or lists or mappings of them, by name."""
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._writer:
            for name, value in scalars(line):
                if name != "step":
                    self._writer.add_scalar(name, value, line["step"])
            self._writer.flush()

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
    for line in metrics.read_text().splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except json.JSONDecodeError:
            break
        kept.append(line + "\n")
    return kept
