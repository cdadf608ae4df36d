"""Measured latencies, and further costs, as a CSV file, one row a subnet, that grows as the measuring goes on.

Only the columns `arch` (JSON) and `latency_ms` are needed, so that a file may come from anywhere, or from an earlier
version.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from predictors.quantities import FURTHER, LATENCY, NOUNS, UNITS_SPELT
from supernet.artifacts.atomic import write_atomically
from supernet.artifacts.reading import numbered_rows, read_columns
from supernet.space import Arch, SearchSpace


class Measurement(NamedTuple):
    """The latency of one subnet: median and quartiles over all runs, each divided by the drift at its time."""

    arch: Arch
    latency_ms: float  # NaN where the subnet failed
    lower_quartile_ms: float = math.nan
    upper_quartile_ms: float = math.nan
    runs: int = 0
    outliers: int = 0  # runs beyond the upper quartile by more than three times the distance of the quartiles
    drift: float = 1.0  # how much slower than at the beginning the reference subnets were, median over the rounds
    reference: bool = False  # one of the reference subnets, whose latencies are not divided by the drift
    error: str = ""  # why the subnet failed
    energy_mj: float = math.nan  # of a run, as `energy` measures it; NaN where it was not measured
    peak_memory_bytes: float = math.nan  # as `memory` measures it; NaN where it was not measured


def read_measurements(path: str | Path, space: SearchSpace | None = None) -> list[Measurement]:
    """The rows of the file, in order; a last line that a killed run left unfinished is passed over.

    ValueError, naming the line, if a column is missing, an architecture is none of `space`, or a latency is no
    positive number on a row without an `error`.
    """
    rows = []
    for line, row in numbered_rows(Path(path), ("arch", LATENCY), whole_lines=True):
        try:
            rows.append(_parse(row, space))
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from None
    return rows


def append_measurements(path: str | Path, rows: Iterable[Measurement]) -> None:
    """Add `rows` to the file, which is made if it is not there, and flush them to the disk.

    A last line that a killed run left unfinished is removed first; a file of an earlier version, without columns that
    there are today, gets these.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _add_columns(path)
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if file.tell() == 0 and path.stat().st_size == 0:
            writer.writerow(Measurement._fields)
        for row in rows:
            writer.writerow(_cells(row))
        file.write(text.getvalue().encode())
        file.flush()
        os.fsync(file.fileno())


def _add_columns(path: Path) -> None:
    if not path.exists():
        return
    fields = read_columns(path, whole_lines=True)
    if not fields or set(Measurement._fields) <= set(fields):
        return
    with write_atomically(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Measurement._fields)
        writer.writerows(_cells(row) for row in read_measurements(path))


def _cells(row: Measurement) -> list[str]:
    cells = row._replace(arch=row.arch.to_json(), reference=int(row.reference), error=" ".join(row.error.split()))
    return [f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in cells]


def _parse(row: dict[str, str], space: SearchSpace | None) -> Measurement:
    arch = Arch.from_json(row["arch"] or "")
    if space:
        arch = space.validate(arch)
    error = row.get("error") or ""
    latency_ms = math.nan if error else positive(row["latency_ms"])
    said = {name: row.get(name) or "nan" for name in FURTHER}
    further = {name: math.nan if text == "nan" else positive(text, name) for name, text in said.items()}
    return Measurement(
        arch,
        latency_ms,
        float(row.get("lower_quartile_ms") or math.nan),
        float(row.get("upper_quartile_ms") or math.nan),
        int(row.get("runs") or 0),
        int(row.get("outliers") or 0),
        float(row.get("drift") or 1),
        row.get("reference") == "1",
        error,
        **further,
    )


def positive(number: str | float | None, quantity: str = LATENCY) -> float:
    """`number` as a float; ValueError, which names the `quantity`, unless it is positive and finite."""
    try:
        value = float(number or "")
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        article = "an" if NOUNS[quantity][0] in "aeiou" else "a"
        raise ValueError(f"{article} {NOUNS[quantity]} is a positive number of {UNITS_SPELT[quantity]}, not {number!r}")
    return value
