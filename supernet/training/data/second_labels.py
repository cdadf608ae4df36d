"""The labels of a second task, by which a network may learn besides: a CSV file of names of images and labels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distill.accompanied import UNLABELLED, Beside
from supernet.artifacts.reading import numbered_rows
from supernet.training.data.config import DataConfig

# N images

COLUMNS = ("file", "label")


class SecondLabels(NamedTuple):
    """Labels of the images to train on."""

    labels: np.ndarray  # [N], in the order of the images; -1 of those that have none
    classes: tuple[str, ...]  # in the order of their labels

    @property
    def digest(self) -> str:
        """Of labels and classes."""
        text = "\n".join([*self.classes, *map(str, self.labels.tolist())])
        return hashlib.sha256(text.encode()).hexdigest()


def read_second_labels(path: str, names: Sequence[str] | None, root: str | None) -> SecondLabels:
    """Those of the images `names`, which lie under `root`, as the file `path` has them in its columns file and label.

    A file is an image's name, whole or from `root` on, such as train/cat/1.png. Images without a row, or whose label is
    empty, have no label; rows of other images, held-out ones say, are not looked at. ValueError, naming the file, if it
    cannot be read, has an image twice, or gives the images fewer than two classes.
    """
    if names is None:
        raise ValueError(f"second_labels name images, and this dataset's have no names: leave out {path}")
    own = [_beneath(root, name) for name in names]
    places = dict(zip(own, range(len(own)))) | dict(zip(names, range(len(names))))
    found: dict[int, str] = {}
    for line, row in numbered_rows(Path(path), COLUMNS):
        place = places.get(row["file"])
        if place is None or not row["label"]:
            continue
        if place in found:
            raise ValueError(f"{path} has two labels of {row['file']}, up to line {line}")
        found[place] = row["label"]
    classes = tuple(sorted({*found.values()}))
    if len(classes) < 2:
        raise ValueError(
            f"{path} gives {len(found)} of the {len(names)} training images {len(classes)} classes, and a second task "
            f"has two at least; an image is named like {own[0]}"
        )
    labels = np.full(len(names), UNLABELLED)
    for place, label in found.items():
        labels[place] = classes.index(label)
    return SecondLabels(labels, classes)


def _beneath(root: str | None, name: str) -> str:
    return name.removeprefix(os.path.join(os.path.abspath(root), "")) if root else name


def check_second_task(beside: Beside, data: DataConfig) -> None:
    """ValueError unless a second task has both a weight and labels, or neither."""
    if bool(beside.second_task) != (data.second_labels is not None):
        raise ValueError(
            "a second task has labels, second_labels, and a weight above 0, second_task: here they are "
            f"{data.second_labels} and {beside.second_task}"
        )
