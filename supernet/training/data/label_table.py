"""Images with any number of classes each, by a table of their labels.

A table is a CSV file with the column `file`, where the image lies, from the table's folder on, and either the column
`labels`, names of classes with semicolons between them, or a column for each class, 1 for images that show it and 0 or
nothing for the others. Each split has a table of its name in the root (train.csv, val.csv), or else all are in
labels.csv, whose column `split` says which. Classes are those of all tables, sorted by name, or in the columns' order.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from supernet.artifacts.reading import numbered_rows, read_columns
from supernet.training.data.folders import SYNONYMS, File, ImageFolder, natural_order, split_names

TOGETHER = "labels.csv"
FILE, LABELS, SPLIT = "file", "labels", "split"
MARKS = {"1": 1.0, "1.0": 1.0, "true": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0, "": 0.0}


class Row(NamedTuple):
    """A line of a table."""

    where: str  # which it is, for people
    file: str
    split: str | None
    classes: Sequence[str] | Mapping[str, float]  # those that the image shows, or whether it shows each


def open_label_table(root: str, split: str) -> ImageFolder:
    """The images of `split` in the order of the table, whose labels are vectors [K], 1 for the classes that they show.

    ValueError, naming file and line, for what is missing or wrong in a table, and for an image that is not there.
    """
    if not os.path.isdir(root):
        raise ValueError(f"root is the folder of the tables, train.csv and val.csv or {TOGETHER}, not {root!r}")
    tables = {name: _read(os.path.join(root, name)) for name in _tables(root, split)}
    classes = _classes(tables)
    own = next((name for name in _files(split) if name in tables), None)
    rows = tables[own] if own else [row for row in tables.get(TOGETHER, ()) if row.split in split_names(split)]
    if not rows:
        raise ValueError(
            f"no images of the split {split!r} in {root!r}: give it a table, {' or '.join(_files(split))}, or lines in "
            f"{TOGETHER} with that {SPLIT}"
        )
    targets = np.zeros((len(rows), len(classes)), np.float32)
    numbers = {name: index for index, name in enumerate(classes)}
    files, seen = [], set()
    for index, row in enumerate(rows):
        path = os.path.realpath(os.path.join(root, row.file))
        if not os.path.isfile(path):
            raise ValueError(f"{row.where}: there is no image {row.file!r} in {root}")
        if path in seen:
            raise ValueError(f"{row.where}: {row.file!r} is there twice: name all its labels in one line")
        seen.add(path)
        files.append(File(path, path))
        marks = row.classes if isinstance(row.classes, Mapping) else dict.fromkeys(row.classes, 1.0)
        for name, mark in marks.items():
            targets[index, numbers[name]] = mark
    return ImageFolder(files, targets, classes)


def _files(split: str) -> list[str]:
    return [f"{name}.csv" for name in split_names(split)]


def _tables(root: str, split: str) -> list[str]:
    """Those of all splits in the folder, whose classes are the same."""
    named = [*_files(split), *(f"{name}.csv" for names in SYNONYMS for name in names), "test.csv", TOGETHER]
    return [name for name in dict.fromkeys(named) if os.path.isfile(os.path.join(root, name))]


def _read(path: str) -> list[Row]:
    columns = [name for name in read_columns(Path(path)) if name not in (FILE, SPLIT)]
    if not columns:
        raise ValueError(f"{path} has no labels: give it the column {LABELS}, or one for each class")
    return [
        _row(f"{path}, line {number}", line, columns)
        for number, line in numbered_rows(Path(path), (FILE,), complete=True)
    ]


def _row(where: str, line: Mapping[str, str], columns: Sequence[str]) -> Row:
    if columns == [LABELS]:
        classes = [name.strip() for name in line[LABELS].split(";") if name.strip()]
        return Row(where, line[FILE], line.get(SPLIT), classes)
    marks = {}
    for name in columns:
        text = line[name].strip().lower()
        if text not in MARKS:
            raise ValueError(f"{where}: {name} is 1 for an image that shows it and 0 otherwise, not {line[name]!r}")
        marks[name] = MARKS[text]
    return Row(where, line[FILE], line.get(SPLIT), marks)


def _classes(tables: Mapping[str, Sequence[Row]]) -> tuple[str, ...]:
    """Those of all tables; ValueError where their columns differ."""
    of_tables = [(name, row) for name, rows in tables.items() for row in rows]
    headers = {tuple(row.classes) for _, row in of_tables if isinstance(row.classes, Mapping)}
    if not headers:
        return tuple(sorted({name for _, row in of_tables for name in row.classes}, key=natural_order))
    if len(headers) > 1 or not all(isinstance(row.classes, Mapping) for _, row in of_tables):
        raise ValueError(f"the tables {', '.join(tables)} have different columns: give all the same, in one order")
    return headers.pop()
