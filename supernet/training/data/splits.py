"""Holding out a part of the training images, so that every class is judged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

logger = logging.getLogger(__name__)

COARSE = 0.05

# N images, C classes


class Split(NamedTuple):
    """Indices of images, each in random order."""

    train: list[int]
    holdout: list[int]


def hold_out(labels: np.ndarray, part: float, generator: np.random.Generator) -> Split:
    """Split images, of which `labels` [N] tells the classes, so that `part` of each class is held out.

    How many of each class is said by `held_out_counts`, and which of them by one permutation of all images. With one
    label for all images this is the plain random split of them. ValueError if no class has an image to spare.
    """
    _, labels = np.unique(labels, return_inverse=True)
    counts = held_out_counts(np.bincount(labels), part)
    if not counts.any():
        raise ValueError(
            f"of {len(labels)} training images none can be held out to judge subnets by, since no class has two: add "
            "images, or name a split with holdout_split"
        )
    train, holdout = [], []
    for index in generator.permutation(len(labels)).tolist():
        label = labels[index]
        (holdout if counts[label] > 0 else train).append(index)
        counts[label] -= 1
    return Split(train, holdout)


def held_out_counts(sizes: np.ndarray, part: float) -> np.ndarray:
    """How many images of each class are held out [C], of `sizes` [C] that there are.

    By the method of largest remainders: `part * size`, rounded down, and one more for the classes that lose most by
    that, so that all of them are round(part * sum(sizes)), at least 1. A class of two or more has at least one image
    held out and one to train on, whatever that does to the sum; the one image of a class is trained on.
    """
    least, most = np.minimum(1, sizes - 1), sizes - 1
    quotas = part * sizes
    counts = np.clip(np.floor(quotas).astype(int), least, most)
    total = np.clip(max(1, round(part * int(sizes.sum()))), least.sum(), most.sum())
    while counts.sum() < total:
        counts[np.argmax(np.where(counts < most, quotas - counts, -np.inf))] += 1
    while counts.sum() > total:
        counts[np.argmin(np.where(counts > least, quotas - counts, np.inf))] -= 1
    return counts


def warn_of_small_classes(labels: np.ndarray, classes: Sequence[str]) -> None:
    """Log which of `classes` have less than the two training images that holding out takes; `labels` [N] are theirs."""
    sizes = np.bincount(labels[(labels >= 0) & (labels < len(classes))], minlength=len(classes))
    for size, what in ((0, "no training image"), (1, "one training image, so that none is held out")):
        few = [name for name, count in zip(classes, sizes) if count == size]
        if few:
            named = ", ".join(few[:5]) + (", ..." if len(few) > 5 else "")
            logger.warning("%d of %d classes have %s: %s", len(few), len(classes), what, named)


def warn_of_few_judges(images: int, num_classes: int) -> None:
    """Log that so many held-out images cannot tell subnets apart: whose accuracy near a half has a standard error of
    more than `COARSE`, or of which there are less than one a class."""
    error = 0.5 / images**0.5
    if error > COARSE or images < num_classes:
        logger.warning(
            "%d held-out images judge subnets of %d classes: an accuracy by them has a standard error of up to %.0f "
            "points; hold out more (holdout), or name a split (holdout_split)",
            images,
            num_classes,
            100 * error,
        )
