"""Subnets as ONNX files, to be measured where Python does not run."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from supernet.artifacts.atomic import write_atomically
from supernet.artifacts.export import export_onnx
from supernet.families import Family
from supernet.space import Arch

MANIFEST = "manifest.csv"
COLUMNS = ("file", "arch", "latency_ms")


def export_subnets(
    family: Family,
    archs: Sequence[Arch],
    directory: str | Path,
    batch_size: int = 1,
    progress: Callable[[int], object] = lambda done: None,
) -> None:
    """Write the subnets to `directory` as 0000.onnx, 0001.onnx, ... and manifest.csv, which lists them.

    The manifest's column `latency_ms` is empty, to be filled in; `measurements.read_measurements` reads it then.
    Files that are there already are left as they are, so that an interrupted export goes on.
    """
    directory = Path(directory)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for index, arch in enumerate(archs):
        name = f"{index:04}.onnx"
        if not (directory / name).exists():
            export_onnx(
                family.build(arch).eval(),
                directory / name,
                family.example(arch),
                names=family.task,
                batch_size=batch_size,
            )
        writer.writerow([name, arch.to_json(), ""])
        progress(index + 1)
    with write_atomically(directory / MANIFEST) as temporary:
        temporary.write_text(text.getvalue())
