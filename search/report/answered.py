"""What a classifier that was taken out of a search makes of the test images: a file in the search's folder, with the
answers about each class, and some of the images as thumbnails.

A report that is passed on shows these images to whoever gets it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch.utils.data import Dataset, IterableDataset

from search.certainty import wilson
from search.report.progress import rounded
from supernet.answers.answers import Answers
from supernet.answers.thumbnails import thumbnail
from supernet.artifacts.atomic import write_json
from supernet.artifacts.reading import read_json

if TYPE_CHECKING:
    from search.report.sources import Search

ERRORS = 12  # images that are shown for the surest wrong answers
DRAWN = 12  # that are drawn from all images alike
PIXELS = 64  # the longer side of a thumbnail
MOST_BYTES = 400_000  # of a report's thumbnails; a search's are some 50,000
TOP = 3  # classes that are said of an image
CONFUSIONS = 20  # pairs of classes


class Sample(TypedDict):
    """A test image, and what the network says of it."""

    image: str  # a JPEG in base64
    name: str
    label: int
    classes: list[int]  # the most probable one first
    probabilities: list[float]
    drawn: bool  # from all images alike, and not for its wrong answer


class Answered(TypedDict):
    """The answers to all test images."""

    classes: list[str]
    images: list[int]  # of each class
    answered: list[int]  # images that each was the most probable class of
    right: list[int]  # that were both
    confusions: list[tuple[int, int, int]]  # label, answer and number of images, the most frequent first
    samples: list[Sample]


def answered(answers: Answers, classes: Sequence[str], images: Dataset, seed: int = 0) -> Answered:
    """What is kept of `answers` about `classes` to `images`, pairs of a PIL image and a label. A stream, whose images
    cannot be picked, gives no samples; `seed` draws them."""
    confusion = answers.confusion().fill_diagonal_(0)
    counts, cells = confusion.flatten().sort(descending=True, stable=True)
    pairs = [
        (cell // len(classes), cell % len(classes), count)
        for cell, count in zip(cells[:CONFUSIONS].tolist(), counts.tolist())
        if count
    ]
    by_class = answers.by_class()
    return {
        "classes": list(classes),
        "images": [own.images for own in by_class],
        "answered": [own.answered for own in by_class],
        "right": [own.right for own in by_class],
        "confusions": pairs,
        "samples": [] if isinstance(images, IterableDataset) else _samples(answers, images, seed),
    }


def write_answered(path: Path, found: Answered) -> None:
    write_json(path, found, indent=None)


def read_answered(path: Path) -> Answered:
    """What `write_answered` wrote to `path`; ValueError, naming the file, if it is not that."""
    found = read_json(path, Answered, "record of answers")
    count = len(found["classes"])
    if any(len(found[name]) != count for name in ("images", "answered", "right")):  # type: ignore[literal-required]
        raise ValueError(f"{path} is no record of answers: it has other numbers of images than of classes")
    labels = [label for *pair, _ in found["confusions"] for label in pair]
    for sample in found["samples"]:
        labels += [sample["label"], *sample["classes"]]
        if len(sample["classes"]) != len(sample["probabilities"]) or not sample["classes"]:
            raise ValueError(f"{path} is no record of answers: an image has other numbers of classes than of answers")
        try:
            base64.b64decode(sample["image"], validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"{path} is no record of answers: an image is no base64") from None
    if not all(0 <= label < count for label in labels):
        raise ValueError(f"{path} is no record of answers: it has classes beyond its {count}")
    if any(not 0 <= right <= images for right, images in zip(found["right"], found["images"])):
        raise ValueError(f"{path} is no record of answers: more answers are right than there are images")
    return found


def answers_content(searches: Sequence[Search]) -> list[dict[str, Any]]:
    """What a report shows of the answers of what was taken out of `searches`: of each folder the last one first, with
    an interval of 95 % for each class, and with thumbnails of `MOST_BYTES` at the most."""
    found = []
    for search in {search.folder: search for search in searches}.values():
        for taken_out in reversed(search.taken_out.values()):
            path = search.folder / Path(taken_out.get("answered", "")).name
            if path.is_file():
                found.append((taken_out["folder"], read_answered(path)))
    records = within_bytes([record for _, record in found])
    return [
        {"folder": folder, **record, "intervals": list(map(_interval, record["right"], record["images"]))}
        for (folder, _), record in zip(found, records)
    ]


def _interval(right: int, images: int) -> tuple[float | None, ...] | None:
    return tuple(map(rounded, wilson(right / images, images))) if images else None


def within_bytes(records: Sequence[Answered], most: int = MOST_BYTES) -> list[Answered]:
    """The `records`, the later ones without samples, from where all samples together would take more than `most` bytes
    as base64."""
    kept, taken = [], 0
    for record in records:
        taken += sum(len(sample["image"]) for sample in record["samples"])
        kept.append(record if taken <= most else {**record, "samples": []})
    return kept


def _samples(answers: Answers, images: Dataset, seed: int) -> list[Sample]:
    """The surest errors, and some that are drawn from all images alike."""
    errors = answers.surest_errors(ERRORS)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(answers.labels), generator=generator)[:DRAWN].tolist()
    names = getattr(images, "names", None)
    return [
        {
            "image": base64.b64encode(thumbnail(images[index][0], PIXELS)).decode(),
            "name": str(names[index]) if names else f"image {index}",
            "label": int(answers.labels[index]),
            "classes": answers.classes[index, :TOP].tolist(),
            "probabilities": [round(value, 4) for value in answers.probabilities[index, :TOP].tolist()],
            "drawn": is_drawn,
        }
        for is_drawn, index in [(False, index) for index in errors] + [(True, index) for index in sorted(drawn)]
    ]
