"""From a dataset of images to batches: in which order, how prepared, in which processes."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate

from supernet.training.data.datasets import ImageStream
from supernet.training.data.images import to_rgb
from supernet.training.randomness import Stream, generator, global_seeds

MOST_WORKERS = 16
STREAM_WORKERS = 4  # always, since the order of a stream follows from their number
FEWEST_IMAGES = 256  # below which to start processes takes longer than what they do


def workers_for(images: int, *, in_memory: bool = False) -> int:
    """Processes that load so many images, where nobody says how many: one for each core of a training process, of which
    there may be several, and 0 for a single core, for few images, and for those that are in memory."""
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return 0 if in_memory or images < FEWEST_IMAGES or cores < 2 else min(cores, MOST_WORKERS)


class Loader(DataLoader):
    """Batches; of a ValueError in a process that loads images, for bad input, the one line that says which."""

    def __init__(self, dataset: Dataset, **options) -> None:
        super().__init__(dataset, worker_init_fn=leave_to_the_parent, **options)

    def __iter__(self) -> Iterator:
        try:
            yield from super().__iter__()
        except ValueError as error:
            lines = str(error).strip().splitlines() or [""]
            raise ValueError(lines[-1].removeprefix("ValueError: ")) from error


def leave_to_the_parent(index: int) -> None:
    """In a process that loads images, the `index`-th: Ctrl-C, which a terminal sends to all processes, is for the one
    that trains, which takes the images of its last step yet."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def collate(samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, ...]:
    """Images and labels, and those of a second task."""
    return tuple(default_collate(samples))


class Transformed(Dataset):
    def __init__(self, dataset: Dataset, transform: Callable):
        self._dataset, self._transform = dataset, transform

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self._dataset[index]
        return self._transform(image), label


class Augmented(Dataset):
    """Images by epoch and index, each augmented by random numbers of its own, with their labels and those of a second
    task, if there are such."""

    def __init__(self, dataset: Dataset, transform: Callable, seed: int, second_labels: np.ndarray | None = None):
        self._dataset, self._transform, self._seed = dataset, transform, seed
        self._labels = () if second_labels is None else (second_labels,)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor | int, ...]:
        image, label = self._dataset[place[1]]
        with global_seeds(self._seed, Stream.AUGMENTATION, *place):
            return self._transform(to_rgb(image)), label, *(labels[place[1]] for labels in self._labels)


class StreamedImages(IterableDataset):
    """Images of a stream: once through, or, with a seed for the augmentation, epoch after epoch, from the `start`-th
    image of each process that loads them on."""

    def __init__(self, stream: ImageStream, transform: Callable, seed: int | None, start: int = 0):
        self._stream, self._transform, self._seed, self._start = stream, transform, seed, start

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        if self._seed is None:
            yield from ((self._transform(image), label) for image, label in self._stream)
            return
        worker = torch.utils.data.get_worker_info()
        first, start = divmod(self._start, self._stream.images_per_epoch())
        for epoch in itertools.count(first):
            for index, (image, label) in enumerate(self._stream.images(epoch, start), start):
                with global_seeds(self._seed, Stream.AUGMENTATION, epoch, index, worker.id if worker else 0):
                    sample = self._transform(to_rgb(image)), label
                yield sample
            start = 0


class Order(Sampler):
    """For each step its epoch and the indices of its images: each image once an epoch, or, with `odds` [images], as
    many images drawn with replacement, each as often as its odds say."""

    def __init__(
        self,
        images: int,
        batch_size: int,
        steps_per_epoch: int,
        seed: int,
        steps: range,
        rank: int,
        world_size: int,
        odds: np.ndarray | None = None,
    ):
        self._odds = None if odds is None else odds / odds.sum()
        self._images, self._batch_size, self._steps_per_epoch = images, batch_size, steps_per_epoch
        self._seed, self._steps, self._rank, self._world_size = seed, steps, rank, world_size

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        permutation, permuted = None, None
        for step in self._steps:
            epoch, position = divmod(step, self._steps_per_epoch)
            if epoch != permuted:
                permutation = self._drawn(generator(self._seed, Stream.ORDER, epoch)).tolist()
                permuted = epoch
            batch = permutation[position * self._batch_size : (position + 1) * self._batch_size]
            yield [(epoch, index) for index in batch[self._rank :: self._world_size]]

    def _drawn(self, draw: np.random.Generator) -> np.ndarray:
        if self._odds is None:
            return draw.permutation(self._images)
        return draw.choice(self._images, self._images, p=self._odds)
