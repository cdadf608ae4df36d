"""Results as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from supernet.artifacts.atomic import write_atomically


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write `rows` with a header of all their names; empty where a row lacks one."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    with write_atomically(path) as temporary:
        temporary.write_text(text.getvalue())
