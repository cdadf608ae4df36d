"""Images: any dataset that timm reads, split three ways, in an order and with augmentation that follow from a seed.

The supernet trains on the *train* part. A *holdout* part of the training images judges subnets during training and
search. The *test* part is for the chosen subnet alone.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_dataset, create_transform
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, Subset, default_collate

from supernet.randomness import Stream, generator, global_seeds
from supernet.splits import hold_out, warn_of_small_classes

logger = logging.getLogger(__name__)

# N images, C channels, R resolution in pixels

TRAIN_NAMES = ("train", "training")


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are prepared."""

    dataset: str = "digits"
    """`digits` (8x8 pixels, within scikit-learn), or a name for timm's create_dataset: `folder` for folders and tar
    files, torch/NAME, hfds/NAME, wds/NAME, ..."""
    root: str | None = None
    """Folder (with train/ and val/ in it, say) or tar file of the images; a cache folder for hfds/NAME."""
    test_root: str | None = None
    """Where the test images are, if not under `root`."""
    train_split: str = "train"
    """Name of the split to train on."""
    test_split: str = "validation"
    """Name of the split that only the chosen subnet is tested on."""
    holdout: float = 0.1
    """Part of the training images that is not trained on but judges subnets, above 0 and below 1."""
    holdout_split: str | None = None
    """Name of a split to judge subnets by instead; needed where images cannot be picked by index (wds/NAME, ...)."""
    num_classes: int | None = None
    """Number of classes, where the dataset does not tell (wds/NAME)."""
    rules: int = 2
    """Version of the rules by which images are found and held out. By the former ones, 1, which runs from before go
    by, they are held out regardless of their classes."""
    workers: int = 4
    """Processes that load images; 0 loads in the training process."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Area of a random training crop, as a part of the image."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratio of a random training crop."""
    hflip: float = 0.5
    """Probability of a horizontal flip in training."""
    color_jitter: float = 0.4
    """Strength of random brightness, contrast and saturation in training; 0 for none."""
    auto_augment: str | None = None
    """timm's name of an augmentation policy, such as rand-m9-mstd0.5."""
    re_prob: float = 0.0
    """Probability of random erasing."""
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
    """How images are resized."""
    crop_pct: float = 0.875
    """Part of the image's shorter side that the central crop keeps in evaluation."""
    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN
    """Mean of each channel, subtracted."""
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD
    """Standard deviation of each channel, divided by."""

    def __post_init__(self):
        if self.rules not in (1, 2):
            raise ValueError(f"rules are 2, or 1, the former ones, not {self.rules}")
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout is a part of the training images, between 0 and 1, not {self.holdout}")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct is a part of the image, above 0 and at most 1, not {self.crop_pct}")
        for name in ("hflip", "re_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, not {getattr(self, name)}")
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is a range of positive numbers, the smaller first, not {low} {high}")
        if self.color_jitter < 0:
            raise ValueError(f"color_jitter is 0 or more, not {self.color_jitter}")
        if self.workers < 0:
            raise ValueError(f"workers is a number of processes, 0 or more, not {self.workers}")


@dataclass(frozen=True)
class Data:
    """The three parts of a dataset, as pairs of a PIL image and a label."""

    train: Dataset
    holdout: Dataset
    test: Dataset
    classes: tuple[str, ...]
    config: DataConfig

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Whole batches in one pass over the training images; ValueError if there is none."""
        steps = len(self.train) // batch_size
        if steps == 0:
            raise ValueError(f"a batch of {batch_size} is more than the {len(self.train)} training images")
        return steps

    def training_batches(
        self, resolution: int, batch_size: int, seed: int, steps: range, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented images [N, C, R, R] and labels [N] of each step in `steps`.

        What a step gets depends on the seed and the step alone: every epoch is a new permutation, every image is
        augmented by its own random numbers. Of the joint batch of a step, rank r of w ranks gets every w-th image.
        """
        transform = _training_transform(self.config, resolution)
        if isinstance(self.train, IterableDataset):
            if world_size > 1:
                raise ValueError(f"dataset {self.config.dataset!r} is a stream, which trains in one process only")
            stream = _Stream(self.train, transform, seed)
            loader = self._loader(stream, batch_size=batch_size, drop_last=True)
            return _skip(iter(loader), steps.start, len(steps))
        order = _Order(len(self.train), batch_size, self.steps_per_epoch(batch_size), seed, steps, rank, world_size)
        return iter(self._loader(_Augmented(self.train, transform, seed), batch_sampler=order))

    def calibration_images(self, resolution: int, count: int, seed: int) -> Tensor:
        """`count` training images [N, C, R, R], prepared as for evaluation, always the same for one seed."""
        if isinstance(self.train, IterableDataset):
            return self.images(self.train, resolution, count)[0]
        chosen = generator(seed, Stream.CALIBRATION).permutation(len(self.train))[:count]
        return self.images(Subset(self.train, chosen.tolist()), resolution)[0]

    def images(self, part: Dataset, resolution: int, count: int | None = None) -> tuple[Tensor, Tensor]:
        """The first `count` images (all if None) of a part [N, C, R, R] and their labels [N], in memory."""
        batches, images_so_far = [], 0
        for images, labels in self.evaluation_batches(part, resolution):
            batches.append((images, labels))
            images_so_far += len(labels)
            if count is not None and images_so_far >= count:
                break
        images, labels = (torch.cat(tensors)[:count] for tensors in zip(*batches))
        return images, labels

    def evaluation_batches(self, part: Dataset, resolution: int, batch_size: int = 256) -> DataLoader:
        """Batches of the images of a part [N, C, R, R], resized and centrally cropped, and their labels [N]."""
        transform = self.evaluation_transform(resolution)
        if isinstance(part, IterableDataset):
            return self._loader(_Stream(part, transform, seed=None), batch_size=batch_size)
        return self._loader(_Transformed(part, transform), batch_size=batch_size)

    def evaluation_transform(self, resolution: int) -> Callable[[Image.Image], Tensor]:
        return create_transform(
            resolution,
            interpolation=self.config.interpolation,
            crop_pct=self.config.crop_pct,
            mean=self.config.mean,
            std=self.config.std,
        )

    def _loader(self, dataset: Dataset, **options) -> DataLoader:
        return DataLoader(
            dataset,
            num_workers=self.config.workers,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_collate,
            generator=torch.Generator(),  # a loader draws a seed for its workers, from torch's global one otherwise
            **options,
        )


def load_data(config: DataConfig, seed: int = 0) -> Data:
    """Open the dataset that `config` names and hold out a part of its training images, chosen by `seed`.

    Raises ValueError, naming what is missing, if the dataset, its package or a split is not there, if the splits have
    different classes, or if train and test are the same images.
    """
    places = {config.train_split: config.root, config.test_split: config.test_root or config.root}
    if config.holdout_split:
        places[config.holdout_split] = config.root
    if len(places) < 2 + bool(config.holdout_split) and not config.test_root:
        raise ValueError(f"the splits to train on, to judge by and to test on must differ: {', '.join(places)}")
    parts = {split: _open(config, split, root, seed) for split, root in places.items()}
    train, test = parts[config.train_split], parts[config.test_split]
    classes = _classes(train, config)
    for split, part in parts.items():
        if odd := sorted(set(classes) ^ set(_classes(part, config))):
            raise ValueError(
                f"splits {config.train_split!r} and {split!r} have different classes; in one of them only: "
                f"{', '.join(odd[:5])}"
            )
    for (split, part), (other_split, other) in itertools.combinations(parts.items(), 2):
        if common := _images(part, places[split]) & _images(other, places[other_split]):
            raise ValueError(
                f"{len(common)} images are in both splits {split!r} and {other_split!r}, such as {min(common)}: name "
                "folders or splits that have none in common (test_split, test_root, holdout_split)"
            )
    try:
        _training_transform(config, 32)
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"timm knows no augmentation policy {config.auto_augment!r}: {error}") from error
    if config.holdout_split:
        holdout = parts[config.holdout_split]
    elif isinstance(train, IterableDataset):
        raise ValueError(f"dataset {config.dataset!r} is a stream: name a split to judge subnets by with holdout_split")
    else:
        split = hold_out(_strata(train, config, classes), config.holdout, generator(seed, Stream.SPLIT))
        train, holdout = Subset(train, split.train), Subset(train, split.holdout)
    return Data(train, holdout, test, classes, config)


def resize(images: Tensor, resolution: int) -> Tensor:
    """Images [N, C, H, W] resized to [N, C, R, R] by bicubic interpolation with antialiasing."""
    if images.shape[-2:] == (resolution, resolution):
        return images
    return F.interpolate(images, size=(resolution, resolution), mode="bicubic", antialias=True)


class Digits(Dataset):
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels in 17 shades of grey (UCI, Alpaydin & Kaynak 1998).

    Every fifth of a fixed permutation is for testing.
    """

    classes = tuple("0123456789")

    def __init__(self, split: str):
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))
        is_test = np.arange(len(order)) % 5 == 0
        chosen = order[~is_test if split in TRAIN_NAMES else is_test]
        self.names = [f"digit {index}" for index in chosen]
        self._pixels = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
        self.targets = digits.target[chosen].tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self._pixels[index]).convert("RGB"), self.targets[index]


def _training_transform(config: DataConfig, resolution: int) -> Callable[[Image.Image], Tensor]:
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
    )


def _open(config: DataConfig, split: str, root: str | None, seed: int) -> Dataset:
    if config.dataset == "digits":
        return Digits(split)
    is_local = "/" not in config.dataset
    if is_local and config.dataset not in ("", "folder"):
        raise ValueError(
            f"there is no dataset {config.dataset!r}: it is digits, folder (with root), or one of timm's kinds with "
            "its name, such as torch/cifar10, hfds/NAME or wds/NAME"
        )
    if is_local and (root is None or not Path(root).exists()):
        raise ValueError(f"no images at root {root!r}: give an existing folder or tar file")
    where = f"split {split!r} of dataset {config.dataset!r} at {root!r}"
    try:
        dataset = create_dataset(
            "" if is_local else config.dataset,
            root=root,
            split=split,
            is_training=split == config.train_split,
            seed=seed,
        )
    except (ImportError, NameError) as error:  # timm leaves a name undefined where a reader's package is missing
        raise ValueError(f"dataset {config.dataset!r} needs another package: {error}") from error
    except (RuntimeError, AssertionError, FileNotFoundError, ValueError) as error:
        message = str(error).splitlines()[0] if str(error) else "it is not where it should be"
        raise ValueError(f"{where} cannot be read: {message}") from error
    if len(dataset) == 0:
        raise ValueError(f"{where} has no images")
    return dataset


def _classes(dataset: Dataset, config: DataConfig) -> tuple[str, ...]:
    """Names of the classes in the order of their labels."""
    names = getattr(dataset, "classes", None)
    if names is None:
        reader = getattr(dataset, "reader", None)
        names = getattr(reader, "class_to_idx", getattr(reader, "class_name_to_idx", None))  # of folders, of tar files
    if not names:
        if config.num_classes is None:
            raise ValueError(f"dataset {config.dataset!r} does not tell its classes: give their number as num_classes")
        return tuple(map(str, range(config.num_classes)))
    return tuple(map(str, sorted(names, key=names.get) if isinstance(names, dict) else names))


def _strata(dataset: Dataset, config: DataConfig, classes: Sequence[str]) -> np.ndarray:
    """Labels of the training images to hold out by [N]; all the same where they are held out regardless of them."""
    labels = None if config.rules == 1 else _labels(dataset)
    if labels is None:
        if config.rules != 1:
            logger.warning(
                "dataset %r does not tell its labels: images are held out regardless of their classes", config.dataset
            )
        return np.zeros(len(dataset), dtype=int)
    warn_of_small_classes(labels, classes)
    return labels


def _labels(dataset: Dataset) -> np.ndarray | None:
    """Labels of all images [N], if they are known without reading these."""
    reader = getattr(dataset, "reader", None)
    if hasattr(reader, "samples"):  # of timm's folders and tar files
        labels = getattr(reader, "targets", None)
        labels = [label for _, label in reader.samples] if labels is None else labels
    elif hasattr(reader, "iter_targets"):  # of hfds/NAME
        labels = list(reader.iter_targets())
    else:
        labels = getattr(dataset, "targets", None)  # of torch/NAME and the digits
    labels = None if labels is None else np.asarray(labels)
    usable = labels is not None and labels.shape == (len(dataset),) and np.issubdtype(labels.dtype, np.integer)
    return labels if usable else None


def _images(dataset: Dataset, root: str | None) -> set[str]:
    """Names of the images of a folder, a tar file or the digits; empty where images have none."""
    if isinstance(dataset, Digits):
        return set(dataset.names)
    if not hasattr(getattr(dataset, "reader", None), "samples"):
        return set()
    return {os.path.join(os.path.abspath(root), name) for name in dataset.filenames(absolute=True)}


def _collate(samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    images, labels = default_collate(samples)
    return images, labels


class _Transformed(Dataset):
    def __init__(self, dataset: Dataset, transform: Callable):
        self._dataset, self._transform = dataset, transform

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self._dataset[index]
        return self._transform(image.convert("RGB")), label


class _Augmented(Dataset):
    """Images by epoch and index, each augmented by random numbers of its own."""

    def __init__(self, dataset: Dataset, transform: Callable, seed: int):
        self._dataset, self._transform, self._seed = dataset, transform, seed

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, int]:
        image, label = self._dataset[place[1]]
        with global_seeds(self._seed, Stream.AUGMENTATION, *place):
            return self._transform(image.convert("RGB")), label


class _Stream(IterableDataset):
    """Images of a stream: once through, or, with a seed for the augmentation, epoch after epoch."""

    def __init__(self, dataset: IterableDataset, transform: Callable, seed: int | None):
        self._dataset, self._transform, self._seed = dataset, transform, seed

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        if self._seed is None:
            yield from ((self._transform(image.convert("RGB")), label) for image, label in self._dataset)
            return
        worker = torch.utils.data.get_worker_info()
        epoch = 0
        while True:
            self._dataset.set_epoch(epoch)
            for index, (image, label) in enumerate(self._dataset):
                with global_seeds(self._seed, Stream.AUGMENTATION, epoch, index, worker.id if worker else 0):
                    sample = self._transform(image.convert("RGB")), label
                yield sample
            epoch += 1


class _Order(Sampler):
    """For each step its epoch and the indices of its images."""

    def __init__(
        self, images: int, batch_size: int, steps_per_epoch: int, seed: int, steps: range, rank: int, world_size: int
    ):
        self._images, self._batch_size, self._steps_per_epoch = images, batch_size, steps_per_epoch
        self._seed, self._steps, self._rank, self._world_size = seed, steps, rank, world_size

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        permutation, permuted = None, None
        for step in self._steps:
            epoch, position = divmod(step, self._steps_per_epoch)
            if epoch != permuted:
                permutation = generator(self._seed, Stream.ORDER, epoch).permutation(self._images).tolist()
                permuted = epoch
            batch = permutation[position * self._batch_size : (position + 1) * self._batch_size]
            yield [(epoch, index) for index in batch[self._rank :: self._world_size]]


def _skip(batches: Iterator, start: int, count: int) -> Iterator:
    for _ in range(start):
        next(batches)
    for _ in range(count):
        yield next(batches)
