"""The form of every benchmark's result: a table on the terminal and a JSON file."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from supernet.artifacts import provenance
from supernet.artifacts.atomic import write_json

# Python looks for modules beside a benchmark first, where search.py would hide the package of that name.
sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]


def report(
    rows: Sequence[Mapping[str, object]],
    summary: Mapping[str, float],
    json_path: Path | None = None,
    **details: object,
) -> None:
    """Print `rows` as a table and `summary` beneath it; with `json_path`, write both there.

    `details` are further entries of the file, such as the settings or the GPU.
    """
    console = Console()
    if rows:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        table = Table(*columns)
        for row in rows:
            cells = (row.get(name, "") for name in columns)
            table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells))
        console.print(table)
    for name, value in summary.items():
        console.print(f"{name} = {value:.4g}", highlight=False)
    save(rows, summary, json_path, **details)


def save(
    rows: Sequence[Mapping[str, object]], summary: Mapping[str, float], json_path: Path | None, **details: object
) -> None:
    """Write what `report` writes, and print nothing: what there is so far, of a benchmark that may be ended."""
    if json_path:
        content = {
            "command": provenance.command(),
            "date": provenance.today(),
            "hardware": provenance.hardware(),
            "versions": provenance.versions(),
            **details,
            "summary": dict(summary),
            "rows": list(rows),
        }
        write_json(json_path, content)
