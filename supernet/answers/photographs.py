"""What a classifier says of photographs: files and folders of any format and mode that Pillow reads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from distill.untouched import untouched
from supernet.artifacts.subnet import Subnet
from supernet.training.data.images import image_suffixes, read_image
from supernet.training.data.loading import Loader

# C channels, R resolution in pixels


class Recognition(NamedTuple):
    """The most probable classes of a file, each by itself where photographs may show several."""

    file: str
    classes: tuple[str, ...] = ()  # the most probable one first; none where the file cannot be read
    probabilities: tuple[float, ...] = ()  # of these, from 0 to 1
    error: str | None = None  # why it cannot be read


def image_files(places: Sequence[str | Path]) -> list[str]:
    """Files, and of folders all images at any depth that are not hidden, by name; ValueError for a place that is not
    there and a folder without images."""
    found = []
    for place in places:
        if os.path.isfile(place):
            found.append(str(place))
        elif os.path.isdir(place):
            inside = sorted(_within(str(place)))
            if not inside:
                raise ValueError(f"there are no images in the folder {place}")
            found += inside
        else:
            raise ValueError(f"there is no file or folder {place}")
    return found


def predictions(
    subnet: Subnet, files: Sequence[str], top: int = 5, *, batch_size: int = 32, workers: int = 0
) -> Iterator[Recognition]:
    """The `top` most probable classes (all, if there are fewer) of each of `files`, in their order, prepared as the
    network was trained; of a file that cannot be read, why. The network runs where it is, `workers` processes read.

    ValueError for a network without images or classes.
    """
    model, config = subnet
    if config.classes is None:
        raise ValueError("the network tells no classes of images apart")
    device = next(model.parameters(), torch.empty(0)).device
    images = _Files(files, config.transform())
    loader = Loader(
        images, batch_size=batch_size, num_workers=workers, collate_fn=_collated, generator=torch.Generator()
    )
    for indices, batch, errors in loader:
        answers: Iterator[tuple[list[int], list[float]]] = iter(())
        if len(batch):
            with torch.inference_mode():
                logits = untouched(model, batch.to(device)).double()
                probabilities = logits.sigmoid() if config.several_labels else logits.softmax(1)
                best = probabilities.topk(min(top, len(config.classes)))
            answers = zip(best.indices.tolist(), best.values.tolist())
        for index, error in zip(indices, errors):
            if error is not None:
                yield Recognition(files[index], error=error)
                continue
            classes, found = next(answers)
            yield Recognition(files[index], tuple(config.classes[k] for k in classes), tuple(found))


class _Files(Dataset):
    """By index, itself, the image [C, R, R] or None, and why it cannot be read."""

    def __init__(self, files: Sequence[str], transform) -> None:
        self._files, self._transform = files, transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[int, Tensor | None, str | None]:
        try:
            return index, self._transform(read_image(self._files[index])), None
        except ValueError as error:
            return index, None, str(error)


def _collated(samples: Sequence[tuple[int, Tensor | None, str | None]]) -> tuple[list[int], Tensor, list[str | None]]:
    indices, images, errors = zip(*samples)
    read = [image for image in images if image is not None]
    return list(indices), torch.stack(read) if read else torch.empty(0), list(errors)


def _within(folder: str) -> Iterator[str]:
    suffixes = image_suffixes()
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                yield os.path.join(path, name)
