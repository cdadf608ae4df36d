"""A classifier's answers to the test images as files: tables, pictures, and a page of its surest errors.

classes.csv       of each class: images, accuracy (recall), precision
confusion.csv     the number of images of each label, a row each, by the class that was answered, a column each
confusion.svg     the same as a picture, in parts of the label's images
reliability.csv   how often answers were right, by how sure they were; the calibration error is the gap between both
reliability.svg   the same as a picture
errors.html       the images that were answered wrongly, the surest answer first
"""

from __future__ import annotations

import base64
import csv
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from supernet.answers.answers import Answers
from supernet.answers.thumbnails import thumbnail
from supernet.artifacts.atomic import write_atomically

PIXELS = 128  # the longer side of a thumbnail
MOST_NAMES = 40  # classes that are named at a picture's axes


def write_answers(folder: Path, answers: Answers, classes: Sequence[str], images: Dataset, errors: int) -> None:
    """Write all of it to `folder`: `images` are those that were answered, of whose errors `errors` are shown; none of a
    stream, whose images cannot be picked."""
    rows = [(name, *own, own.accuracy, own.precision) for name, own in zip(classes, answers.by_class())]
    header = ["class", "images", "answered", "right", "accuracy", "precision"]
    write_csv(folder / "classes.csv", header, rows)
    confusion = answers.confusion()
    write_csv(
        folder / "confusion.csv",
        ["label", *classes],
        ([name, *row] for name, row in zip(classes, confusion.tolist())),
    )
    _plot_confusion(folder / "confusion.svg", confusion.numpy(), classes)
    bins = answers.reliability()
    write_csv(folder / "reliability.csv", list(bins[0]._fields), bins)
    _plot_reliability(folder / "reliability.svg", answers)
    if not isinstance(images, IterableDataset):
        page = _page(answers, classes, images, errors)
        with write_atomically(folder / "errors.html") as temporary:
            temporary.write_text(page, encoding="utf-8")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with write_atomically(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _plot_confusion(path: Path, confusion: np.ndarray, classes: Sequence[str]) -> None:
    from matplotlib.figure import Figure

    side = min(3.5 + 0.22 * len(classes), 12)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    parts = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    shown = axes.imshow(100 * parts, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    figure.colorbar(shown, label="part of the label's images (%)")
    axes.set_xlabel("answer")
    axes.set_ylabel("label")
    if len(classes) <= MOST_NAMES:
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
    _save(figure, path)


def _plot_reliability(path: Path, answers: Answers) -> None:
    from matplotlib.figure import Figure

    bins = [own for own in answers.reliability() if own.images]
    figure = Figure(figsize=(5, 5), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    above.plot([0, 100], [0, 100], "--", color="#b8b8b8", label="as right as sure")
    above.plot([100 * b.confidence for b in bins], [100 * b.accuracy for b in bins], "o-", color="#0072b2")
    above.set_ylabel("right answers (%)")
    above.set_title(f"expected calibration error {100 * answers.quality.calibration_error:.1f} %")
    above.legend()
    width = 100 * (bins[0].high - bins[0].low)
    below.bar([100 * b.low for b in bins], [b.images for b in bins], width, align="edge", color="#0072b2")
    below.set_xlabel("confidence (%)")
    below.set_ylabel("images")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def _page(answers: Answers, classes: Sequence[str], images: Dataset, count: int) -> str:
    wrong = int((~answers.right).sum())
    shown = answers.surest_errors(count)
    names = getattr(images, "names", None)
    figures = "\n".join(
        _figure(
            images[index][0],
            f"{classes[answers.labels[index]]} taken for {classes[answers.classes[index, 0]]}",
            f"{float(answers.probabilities[index, 0]):.1%} sure",
            names[index] if names else f"image {index}",
        )
        for index in shown
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Errors</title>
<style>
body {{ font: 15px system-ui, sans-serif; margin: 1.5rem; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: 1rem; }}
figure {{ margin: 0; overflow-wrap: anywhere; }} img {{ height: {PIXELS}px; object-fit: contain; max-width: 100%; }}
small {{ color: #555; }}
</style>
<h1>{wrong} of {len(answers.labels)} images are answered wrongly</h1>
<p>{f"The {len(shown)} surest errors." if len(shown) < wrong else "All of them"}, the surest answer first.</p>
<main>
{figures}
</main></html>
"""


def _figure(image: Image.Image, what: str, sure: str, name: str) -> str:
    """A thumbnail with what it was taken for."""
    source = base64.b64encode(thumbnail(image, PIXELS)).decode()
    caption = f"{html.escape(what)}<br>{html.escape(sure)}<br><small>{html.escape(name)}</small>"
    return (
        f'<figure><img src="data:image/jpeg;base64,{source}" alt="{html.escape(what)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
