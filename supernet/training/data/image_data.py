"""Images: any dataset that timm reads, split three ways, in an order and with augmentation that follow from a seed.

The supernet trains on the *train* part. A *holdout* part of the training images judges subnets during training and
search. The *test* part is for the chosen subnet alone.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from supernet.training.data.batch import Batch, joined, take
from supernet.training.data.cache import Cached
from supernet.training.data.config import DataConfig
from supernet.training.data.datasets import Digits, open_dataset
from supernet.training.data.folders import open_unlabelled
from supernet.training.data.images import evaluation_transform
from supernet.training.data.loading import (
    STREAM_WORKERS,
    Augmented,
    Loader,
    Order,
    StreamedImages,
    Transformed,
    collate,
    workers_for,
)
from supernet.training.data.pixels import Pixels
from supernet.training.data.protocol import Data
from supernet.training.data.second_labels import SecondLabels, read_second_labels
from supernet.training.data.splits import hold_out, warn_of_small_classes
from supernet.training.randomness import Stream, generator

logger = logging.getLogger(__name__)

SEVERAL_LABELS = "several_labels"  # what a family is told of images that show any number of classes

# N images, C channels, R resolution in pixels

__all__ = ["DataConfig", "Digits", "ImageData", "open_images", "resize"]


@dataclass(frozen=True)
class ImageData(Data):
    """The three parts of a dataset, as pairs of a PIL image and a label; batches are (images [N, C, R, R], labels [N]),
    at a resolution R in pixels; with several labels an image, the label is a vector [K], 1 for the classes that it
    shows and 0 for the others. Images to train on are `Pixels`, which `supernet.training.data.batch.on` normalises,
    unless parts of them are erased, which comes after that."""

    train: Dataset
    holdout: Dataset
    test: Dataset
    classes: tuple[str, ...] = field()  # of which `Data` has a default
    config: DataConfig
    workers: int | None = 0  # processes that load images; 0 loads in this one, None is as many as seem right
    pixels: bool = False  # those to calibrate by and to evaluate on are `Pixels` as well, see `compact`
    second: SecondLabels | None = None  # of the images to train on, which batches to train on then have as well

    def __post_init__(self):
        object.__setattr__(self, "config", self.config.normalised)
        if self.second is not None and len(self.second.labels) != len(self.train):
            raise ValueError(f"{len(self.second.labels)} labels of a second task for {len(self.train)} training images")

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def second_classes(self) -> tuple[str, ...]:
        return () if self.second is None else self.second.classes

    @property
    def several_labels(self) -> bool:
        """Whether an image may show several classes, or none."""
        return np.ndim(getattr(_source(self.train), "targets", None)) == 2

    @property
    def family_arguments(self) -> dict[str, object]:
        return {"num_classes": self.num_classes, **({SEVERAL_LABELS: True} if self.several_labels else {})}

    def steps_per_epoch(self, batch_size: int) -> int:
        """Whole batches in one pass over the training images; ValueError if there is none."""
        steps = len(self.train) // batch_size
        if steps == 0:
            raise ValueError(f"a batch of {batch_size} is more than the {len(self.train)} training images")
        return steps

    def training_batches(
        self, resolution: int, batch_size: int, seed: int, steps: range, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Tensor | Pixels, Tensor]]:
        """Augmented images [N, C, R, R] and labels [N] of each step in `steps`, and those of a second task [N].

        What a step gets depends on the seed and the step alone: every epoch is a new permutation, every image is
        augmented by its own random numbers. Of the joint batch of a step, rank r of w ranks gets every w-th image.
        """
        transform = _training_transform(self.config, resolution)
        if isinstance(self.train, IterableDataset):
            if world_size > 1:
                raise ValueError(f"dataset {self.config.dataset!r} is a stream, which trains in one process only")
            # processes take turns, so that in whole rounds each has made as many batches
            rounds, turns = divmod(steps.start, max(self._workers_for(self.train), 1))
            stream = StreamedImages(self.train, transform, seed, rounds * batch_size)
            loader = self._loader(stream, self.train, batch_size=batch_size, drop_last=True)
            return self._to_normalise(itertools.islice(loader, turns, turns + len(steps)))
        odds = None
        if self.config.balanced:
            if (labels := self.training_labels()) is None:
                raise ValueError(
                    f"dataset {self.config.dataset!r} does not tell one label an image: leave out balanced"
                )
            odds = 1 / np.bincount(labels)[labels]
        order = Order(
            len(self.train), batch_size, self.steps_per_epoch(batch_size), seed, steps, rank, world_size, odds
        )
        second = None if self.second is None else self.second.labels
        augmented = Augmented(self.train, transform, seed, second)
        return self._to_normalise(self._loader(augmented, self.train, batch_sampler=order))

    def training_labels(self) -> np.ndarray | None:
        """The labels of the images to train on [N], in their order; None where the dataset does not tell, or where
        they are several an image."""
        return None if self.several_labels else _targets(self.train)

    def calibration_batches(self, resolution: int, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """`count` training images, prepared as for evaluation, always the same for one seed."""
        part = self.train
        if not isinstance(part, IterableDataset):
            part = Subset(part, generator(seed, Stream.CALIBRATION).permutation(len(part))[:count].tolist())
        return take(self.evaluation_batches(part, resolution), count)

    def calibration_images(self, resolution: int, count: int, seed: int) -> Tensor:
        """The images [N, C, R, R] of `calibration_batches`, in memory."""
        return joined(list(self.calibration_batches(resolution, count, seed)))[0]

    def images(self, part: Dataset, resolution: int, count: int | None = None) -> tuple[Tensor, Tensor]:
        """The first `count` images (all if None) of a part [N, C, R, R] and their labels [N], in memory."""
        return joined(list(take(self.evaluation_batches(part, resolution), count)))

    def evaluation_batches(self, part: Dataset, resolution: int, batch_size: int = 256) -> Iterable[Batch]:
        """Batches of the images of a part [N, C, R, R], resized and centrally cropped, and their labels [N]."""
        transform = self.evaluation_transform(resolution)
        is_stream = isinstance(part, IterableDataset)
        dataset = StreamedImages(part, transform, seed=None) if is_stream else Transformed(part, transform)
        loader = self._loader(dataset, part, batch_size=batch_size)
        return self._to_normalise(loader) if self.pixels else loader

    def evaluation_transform(self, resolution: int) -> Callable[[Image.Image], Tensor]:
        config = self.config
        return evaluation_transform(
            resolution, config.interpolation, config.crop_pct, config.mean, config.std, normalise=not self.pixels
        )

    def compact(self) -> ImageData:
        """The same images as `Pixels`, bit for bit once they are normalised, in a quarter of the bytes."""
        return replace(self, pixels=True)

    def cached(self, most_bytes: int) -> ImageData:
        """The same images, of which those to train on, and those held out of them, are decoded once, as far as so many
        bytes hold them. Logs that a stream's are not."""
        if isinstance(self.train, IterableDataset):
            logger.warning("cache_bytes has no effect: dataset %r is a stream", self.config.dataset)
            return self
        source = _source(self.train)
        cache = Cached(source, most_bytes)

        def cached(part: Dataset) -> Dataset:
            if isinstance(part, Subset):
                return Subset(cached(part.dataset), part.indices)
            return cache if part is source else part

        return replace(self, train=cached(self.train), holdout=cached(self.holdout))

    def _workers_for(self, part: Dataset) -> int:
        """Processes that load the images of a part."""
        if self.workers is not None:
            return self.workers
        if isinstance(part, IterableDataset):
            return STREAM_WORKERS
        return workers_for(len(part), in_memory=isinstance(_source(part), Digits))

    def count(self, part: Dataset) -> int:
        return len(part)

    def description(self) -> dict[str, Any]:
        """The classes, the number of images in each part, and a digest of the images' names in their order."""
        parts = {name: getattr(self, name) for name in ("train", "holdout", "test")}
        return {
            "classes": self.classes,
            "images": {name: self.count(part) for name, part in parts.items()},
            "files": {name: self._digest(name, part) for name, part in parts.items()},
            **({} if self.second is None else {"second_labels": self.second.digest}),
        }

    def check_unchanged(self, begun: Mapping[str, Any], directory: Path) -> None:
        now = self.description()
        if begun["classes"] != list(now["classes"]):
            raise ValueError(f"{directory} was begun with other classes: {', '.join(begun['classes'])}")
        if begun["images"] != now["images"]:
            raise ValueError(
                f"the dataset has changed since {directory} was begun, with {begun['images']} images and not "
                f"{now['images']}: images that were trained on would judge the search"
            )
        if self.second is not None and begun.get("second_labels") != now["second_labels"]:
            raise ValueError(f"{directory} was begun with other labels of the second task, second_labels")
        for part, digest in begun.get("files", {}).items():  # former versions looked at numbers alone
            if None not in (digest, now["files"][part]) and digest != now["files"][part]:
                raise ValueError(
                    f"the dataset has changed since {directory} was begun: the {part} images have other names, though "
                    "they are as many; images that were trained on would judge the search"
                )

    def _digest(self, name: str, part: Dataset) -> str | None:
        """Of the names of a part's images, beneath the root; None where they have no names."""
        root = (name == "test" and self.config.test_root) or self.config.root
        names = _names(part)
        if names is None:
            return None
        if root:
            names = [name.removeprefix(os.path.abspath(root)) for name in names]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()

    def _to_normalise(self, batches: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor | Pixels, ...]]:
        mean, std = tuple(self.config.mean), tuple(self.config.std)
        for images, *labels in batches:
            yield (images if images.is_floating_point() else Pixels(images, mean, std)), *labels

    def _loader(self, dataset: Dataset, part: Dataset, **options) -> DataLoader:
        """Of the images of a part, as `dataset` prepares them."""
        return Loader(
            dataset,
            num_workers=self._workers_for(part),
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
            generator=torch.Generator(),  # a loader draws a seed for its workers, from torch's global one otherwise
            **options,
        )


def open_unlabelled_images(root: str, config: DataConfig, workers: int | None = 0) -> ImageData:
    """The images in a folder or tar file, to train on without their labels, all of which are 0, prepared as `config`
    says; none are held out. ValueError as `supernet.training.data.folders.open_unlabelled`."""
    images = open_unlabelled(root)
    return ImageData(images, Subset(images, []), Subset(images, []), images.classes, config, workers)


def open_images(config: DataConfig, seed: int = 0, workers: int | None = 0) -> ImageData:
    """Open the dataset that `config` names and hold out a part of its training images, chosen by `seed`.

    `workers` processes load the images, which are the same for any number; 0 loads in this process, None
    leaves the number to the images and the machine.

    Raises ValueError, naming what is missing, if the dataset, its package or a split is not there, if the splits have
    different classes, fewer than two, or images in common, or if there are labels of no class.
    """
    config = config.normalised
    places = [(config.train_split, config.root), (config.test_split, config.test_root or config.root)]
    if config.holdout_split:
        places.append((config.holdout_split, config.root))
    if len(set(places)) < len(places):
        names = ", ".join(split for split, _ in places)
        raise ValueError(f"the splits to train on, to test on and to judge by must differ: {names}")
    parts = [
        open_dataset(config.dataset, root, split, is_training=not index, seed=seed, rules=config.rules)
        for index, (split, root) in enumerate(places)
    ]
    named = [(split, part) for (split, _), part in zip(places, parts)]
    images = [(split, set(part.names or ())) for split, part in named]
    for (split, names), (other_split, other_names) in itertools.combinations(images, 2):
        if common := names & other_names:
            what = "files" if isinstance(parts[0], IterableDataset) else "images"
            raise ValueError(
                f"{len(common)} {what} are in both splits {split!r} and {other_split!r}, such as {min(common)}: name "
                "folders or splits that have none in common (test_split, test_root, holdout_split)"
            )
    train, test, *judges = parts
    classes = _classes(train, config)
    if train.classes and config.num_classes not in (None, len(classes)):
        logger.warning(
            "num_classes %d has no effect: dataset %r tells its %d classes itself",
            config.num_classes,
            config.dataset,
            len(classes),
        )
    for split, part in named:
        if odd := sorted(set(classes) ^ set(_classes(part, config))):
            raise ValueError(
                f"splits {config.train_split!r} and {split!r} have different classes; in one of them only: "
                f"{', '.join(odd[:5])}"
            )
    if config.rules > 1:
        _check_labels(named, classes)
    try:
        _training_transform(config, 32)
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"timm knows no augmentation policy {config.auto_augment!r}: {error}") from error
    if judges:
        (holdout,) = judges
        if config.rules > 2 and not isinstance(holdout, IterableDataset):  # so that the first ones are of all classes
            holdout = Subset(holdout, generator(seed, Stream.SPLIT).permutation(len(holdout)).tolist())
    elif isinstance(train, IterableDataset):
        raise ValueError(f"dataset {config.dataset!r} is a stream: name a split to judge subnets by with holdout_split")
    else:
        split = hold_out(_strata(train, config, classes), config.holdout, generator(seed, Stream.SPLIT))
        train, holdout = Subset(train, split.train), Subset(train, split.holdout)
    second = None
    if config.second_labels is not None:
        second = read_second_labels(config.second_labels, _names(train), config.root)
    return ImageData(train, holdout, test, classes, config, workers, second=second)


def resize(images: Tensor, resolution: int) -> Tensor:
    """Images [N, C, H, W] resized to [N, C, R, R] by bicubic interpolation with antialiasing."""
    if images.shape[-2:] == (resolution, resolution):
        return images
    return F.interpolate(images, size=(resolution, resolution), mode="bicubic", antialias=True)


def _training_transform(config: DataConfig, resolution: int) -> Callable[[Image.Image], Tensor]:
    """What makes of a PIL image values of 8 bits, or, where parts of it may be erased, a network's input [C, R, R]."""
    return create_transform(
        resolution,
        is_training=True,
        scale=config.scale,
        ratio=config.ratio,
        hflip=config.hflip,
        color_jitter=config.color_jitter or None,
        auto_augment=config.auto_augment,
        re_prob=config.re_prob,
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
        normalize=config.re_prob > 0,
    )


def _source(part: Dataset) -> Dataset:
    """The dataset that a part is of."""
    return _source(part.dataset) if isinstance(part, (Subset, Cached)) else part


def _targets(part: Dataset) -> np.ndarray | None:
    if isinstance(part, Subset):
        targets = _targets(part.dataset)
        return None if targets is None else targets[list(part.indices)]
    targets = getattr(part, "targets", None)
    return None if targets is None else np.asarray(targets)


def _names(part: Dataset) -> list[str] | None:
    if isinstance(part, Subset):
        names = _names(part.dataset)
        return None if names is None else [names[index] for index in part.indices]
    names = getattr(part, "names", None)
    return None if names is None else list(names)


def _classes(dataset: Dataset, config: DataConfig) -> tuple[str, ...]:
    """Names of the classes in the order of their labels."""
    if dataset.classes:
        return dataset.classes
    if config.num_classes is None:
        raise ValueError(f"dataset {config.dataset!r} does not tell its classes: give their number as num_classes")
    return tuple(map(str, range(config.num_classes)))


def _check_labels(parts: Sequence[tuple[str, Dataset]], classes: Sequence[str]) -> None:
    """ValueError if there is nothing to tell apart, or if labels of a split are of no class."""
    if len(classes) < 2:
        raise ValueError(
            f"there is one class only, {classes[0]}: put the images of each class into a folder of its own, directly "
            "beneath train/ and val/"
        )
    for split, part in parts:
        labels = np.zeros(1, dtype=int) if part.targets is None else np.asarray(part.targets)
        if labels.min() < 0 or labels.max() >= len(classes):
            raise ValueError(
                f"labels of split {split!r} are {labels.min()} to {labels.max()}, but there are {len(classes)} "
                "classes: name a split whose images all have a label"
            )


def _strata(dataset: Dataset, config: DataConfig, classes: Sequence[str]) -> np.ndarray:
    """Labels of the training images to hold out by [N]; all the same where they are held out regardless of them."""
    labels = None if dataset.targets is None else np.asarray(dataset.targets)
    if labels is not None and labels.ndim == 2:
        if lacking := [name for name, count in zip(classes, labels.sum(0)) if not count]:
            logger.warning("%d of %d classes are in no training image: %s", len(lacking), len(classes), lacking[0])
        return np.zeros(len(labels), dtype=int)
    if config.rules > 1 and labels is not None:
        warn_of_small_classes(labels, classes)
        return labels
    if config.rules > 1:
        logger.warning("dataset %r does not tell its labels: they are not looked at in holding out", config.dataset)
    return np.zeros(len(dataset), dtype=int)
