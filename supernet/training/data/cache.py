"""Decoded images in memory, up to a number of bytes, shared by the processes that load images.

What is kept is what `to_rgb` makes of an image, 8 bits a value, so that all that comes after it is bit for bit what it
would be without a cache. What does not fit is read anew each time.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch.multiprocessing
from PIL import Image
from torch.utils.data import Dataset

from supernet.training.data.images import to_rgb

LOCK_SECONDS = 1.0  # that the lock is waited for, which a process that was killed may have


class Cached(Dataset):
    """The images and labels of a dataset that gives them by index, of which `most_bytes` are kept once they were read.

    Processes that are forked from the one that made it share the memory, which is taken as it is filled; others, that
    get a copy, read everything anew. It tells what the dataset tells: `classes`, `targets` and `names`.
    """

    def __init__(self, dataset: Dataset, most_bytes: int) -> None:
        self.dataset = dataset
        self._open(most_bytes)

    def _open(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        if not most_bytes:
            return
        # anonymous: what is in /dev/shm is limited, in containers to little
        count = max(len(self.dataset), 1)
        try:
            self._pixels = mmap.mmap(-1, most_bytes)
        except (OSError, OverflowError) as error:
            raise ValueError(f"cache_bytes is more memory than this machine gives: {most_bytes}") from error
        self._places = np.frombuffer(mmap.mmap(-1, 8 * 3 * count), np.int64).reshape(count, 3)  # start, width, height
        self._labels = np.frombuffer(mmap.mmap(-1, 8 * count), np.int64)  # where they are no vectors
        self._taken = np.frombuffer(mmap.mmap(-1, 8), np.int64)  # bytes
        self._lock = torch.multiprocessing.get_context("fork").Lock()

    def __getattr__(self, name: str) -> Any:
        if name not in ("classes", "targets", "names"):
            raise AttributeError(name)
        return getattr(self.dataset, name, None)

    def __getstate__(self) -> Mapping[str, Any]:
        return {"dataset": self.dataset}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.dataset = state["dataset"]
        self._open(0)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if (kept := self._kept(index)) is not None:
            return kept
        image, label = self.dataset[index]
        image = to_rgb(image)
        self._keep(index, image, label)
        return image, label

    @property
    def bytes_kept(self) -> int:
        return int(self._taken[0]) if self._most_bytes else 0

    def _kept(self, index: int) -> tuple[Image.Image, int] | None:
        """The image and its label; None if it is not there."""
        if not self._most_bytes:
            return None
        with self._locked() as is_locked:
            start, width, height = self._places[index] if is_locked else (0, 0, 0)
        if not width:
            return None
        size = (int(width), int(height))
        pixels = self._pixels[int(start) : int(start) + 3 * size[0] * size[1]]
        label = self.targets[index] if np.ndim(self.targets) > 1 else int(self._labels[index])
        return Image.frombytes("RGB", size, pixels), label

    def _keep(self, index: int, image: Image.Image, label: int) -> None:
        pixels = image.tobytes() if self._most_bytes else b""
        if not pixels:
            return
        with self._locked() as is_locked:
            start = int(self._taken[0])
            if not is_locked or self._places[index, 1] or start + len(pixels) > self._most_bytes:
                return
            self._pixels[start : start + len(pixels)] = pixels
            if not np.ndim(label):
                self._labels[index] = label
            self._taken[0] = start + len(pixels)
            self._places[index] = start, image.width, image.height

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Whether the lock was to be had."""
        is_locked = self._lock.acquire(timeout=LOCK_SECONDS)
        try:
            yield is_locked
        finally:
            if is_locked:
                self._lock.release()
