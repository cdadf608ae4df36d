"""Where images come from, opened alike: folders, tar files, the digits, and all that timm's create_dataset opens.

Each dataset tells, where it can without reading its images, the names of its `classes`, the labels of its images,
`targets` [N], and where they are, `names`; otherwise these are None. An image that cannot be read is an error that
names it: timm's own datasets would go on with the next one, even if that is held out or for testing, or leave it out.
"""

from __future__ import annotations

import copy
import itertools
import os
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset
from timm.data.readers.shared_count import SharedCount
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from supernet.training.data.folders import ImageFolder, open_folder, open_former_folder
from supernet.training.data.images import image_suffixes, read_image, to_rgb, unreadable
from supernet.training.data.label_table import open_label_table

# N images

TRAIN_NAMES = ("train", "training")
TORCH_FOLDERS = ("torch/folder", "torch/image_folder")


def open_dataset(
    name: str, root: str | None, split: str, *, is_training: bool = False, seed: int = 0, rules: int = 3
) -> Digits | ImageFolder | Indexed | ImageStream:
    """The images of a split of the dataset `name`, as pairs of a PIL image and a label.

    A stream is shuffled by `seed` if `is_training`. By the former `rules`, 1, folders are read as timm's reader does.
    ValueError, naming what is missing or wrong, if the dataset, its package or the split cannot be opened or is empty.
    """
    if name == "digits":
        return Digits(split)
    if name == "multilabel":
        return open_label_table(root or "", split)
    is_local = "/" not in name
    if is_local and name not in ("", "folder"):
        raise ValueError(
            f"there is no dataset {name!r}: it is digits, folder or multilabel (with root), or one of timm's kinds "
            "with its name, such as torch/cifar10, hfds/NAME or wds/NAME"
        )
    if is_local and (root is None or not Path(root).exists()):
        raise ValueError(f"no images at root {root!r}: give an existing folder or tar file")
    where = f"split {split!r} of dataset {name!r} at {root!r}"
    try:
        if is_local:
            return open_folder(root, split) if rules > 1 else open_former_folder(root, split)
        if rules > 1 and name.lower() in TORCH_FOLDERS and root is not None:
            return open_folder(root, split)
        dataset = create_dataset(
            name, root=root, split=split, is_training=is_training, seed=seed, **_as_they_are(name.lower())
        )
    except (ImportError, NameError) as error:  # timm leaves a name undefined where a reader's package is missing
        raise ValueError(f"dataset {name!r} needs another package: {error}") from error
    except (RuntimeError, AssertionError, OSError, ValueError, LookupError, TypeError) as error:
        message = str(error).splitlines()[0] if str(error) else "it is not where it should be"
        raise ValueError(f"{where} cannot be read: {message}") from error
    if len(dataset) == 0:
        raise ValueError(f"{where} has no images")
    if isinstance(dataset, IterableDataset):
        return ImageStream(dataset, where)
    return _of_reader(dataset.reader, where) if hasattr(dataset, "reader") else _of_torch(dataset, where)


def broken_images(part: Dataset, workers: int = 0) -> Iterator[str | None]:
    """What the error of each image of a part says, or None; of a stream, up to the first. So many `workers` read."""
    if isinstance(part, IterableDataset):
        try:
            for _ in part:
                yield None
        except ValueError as error:
            yield str(error)
        return
    for errors in DataLoader(_Errors(part), 16, num_workers=workers, collate_fn=list, generator=torch.Generator()):
        yield from errors


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


class Indexed(Dataset):
    """Upright RGB images and labels of what gives both by index: one of torchvision's datasets, or a reader of timm's.

    ValueError, by the image's name or else its index and `where`, for an image that cannot be read or has no label.
    """

    def __init__(
        self,
        samples: Any,
        where: str,
        classes: tuple[str, ...] | None,
        targets: np.ndarray | None,
        names: list[str] | None = None,
    ) -> None:
        self._samples, self._where = samples, where
        self.classes, self.targets, self.names = classes, targets, names

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index >= len(self):
            raise IndexError(f"there is no image {index}")  # which ends a `for` over the images
        name = repr(self.names[index]) if self.names else f"image {index} of {self._where}"
        try:
            image, label = self._samples[index]
        except Exception as error:  # what decoders raise for broken bytes is of any type
            raise unreadable(name, error) from error
        if label is None:
            raise ValueError(f"{name} has no label: name a split that has labels")
        return to_rgb(image) if isinstance(image, Image.Image) else read_image(image, name), label


class ImageStream(IterableDataset):
    """Images and labels in the order of a stream of timm's; ValueError for an image that cannot be read.

    Of several processes that load images each gets its part of every epoch. Its names are those of the files with many
    images each, where the stream tells them (wds/NAME).
    """

    targets = None

    def __init__(self, dataset: IterableDataset, where: str) -> None:
        self._dataset, self._where = dataset, where
        self.classes = _class_names(getattr(dataset.reader, "class_to_idx", None))
        files = dataset.reader.split_info.filenames if _is_webdataset(dataset.reader) else ()
        self.names = [os.path.join(dataset.reader.root, file) for file in files] or None

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        return self.images()

    def images(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Image.Image, int]]:
        """This process's part of an epoch, from its `start`-th image on, which follow from the epoch alone.

        The images before are read, but not decoded in wds/NAME.
        """
        reader = _anew(self._dataset.reader, epoch)
        if _is_webdataset(reader):
            _open_webdataset(reader, epoch, start)
        count = start
        try:
            for image, label in itertools.islice(reader, start, None):
                count += 1
                yield image, label
        except (OSError, SyntaxError, tarfile.TarError, Image.DecompressionBombError) as error:
            raise unreadable(f"image {count} of {self._where}", error) from error

    def images_per_epoch(self) -> int:
        """The number of images of this process in an epoch of training."""
        worker = get_worker_info()
        processes = worker.num_workers if worker else 1
        self._dataset.set_loader_cfg(num_workers=processes)
        return len(self._dataset) // processes


class _Errors(Dataset):
    """What reading each image says."""

    def __init__(self, part: Dataset) -> None:
        self._part = part

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, index: int) -> str | None:
        try:
            self._part[index]
        except ValueError as error:
            return str(error)
        return None


def _as_they_are(name: str) -> dict[str, str]:
    """Options of timm's for images of all formats, not yet converted, where these are PIL images."""
    if name.startswith("tfds/"):
        return {}
    if not name.startswith("wds/"):
        return {"input_img_mode": ""}
    first = ["jpg", "png", "webp"]  # which timm looks for
    others = sorted({suffix[1:] for suffix in image_suffixes()} - set(first))
    return {"input_img_mode": "", "input_key": ";".join(first + others)}


def _of_torch(dataset: Any, where: str) -> Indexed:
    if hasattr(dataset, "loader"):  # of folders
        dataset.loader = read_image
    names = [str(sample[0]) for sample in dataset.samples] if hasattr(dataset, "samples") else None
    return Indexed(
        dataset,
        where,
        _class_names(getattr(dataset, "classes", None)),
        _labels(getattr(dataset, "targets", None), len(dataset)),
        names,
    )


def _of_reader(reader: Any, where: str) -> Indexed:
    """Of hfds/NAME; its names are those of files elsewhere and may be missing."""
    labels = reader.dataset.select_columns([reader.label_key]).with_format("numpy")[:][reader.label_key]
    return Indexed(reader, where, _class_names(reader.class_to_idx), _labels(labels, len(reader)))


def _class_names(classes: Any) -> tuple[str, ...] | None:
    """In the order of their labels, of a sequence or a dictionary of labels by name."""
    if not classes:
        return None
    return tuple(map(str, sorted(classes, key=classes.get) if isinstance(classes, dict) else classes))


def _labels(labels: Any, count: int) -> np.ndarray | None:
    labels = np.asarray(labels)
    return labels if labels.shape == (count,) and np.issubdtype(labels.dtype, np.integer) else None


def _is_webdataset(reader: Any) -> bool:
    return type(reader).__name__ == "ReaderWds"  # whose module needs the package


def _anew(reader: Any, epoch: int) -> Any:
    """A reader of timm's that begins with `epoch`, of which processes that load images otherwise share the number,
    while some are in the epoch before."""
    reader = copy.copy(reader)
    reader.ds = None
    for name, value in list(vars(reader).items()):
        if isinstance(value, SharedCount):
            setattr(reader, name, SharedCount(epoch))
    return reader


def _open_webdataset(reader: Any, epoch: int, start: int) -> None:
    """Let the stages of a webdataset pipeline raise, with the sample's name, where timm's handlers leave it out,
    shuffle by the epoch, and not by all that was drawn before, and decode from the `start`-th sample on."""
    reader._lazy_init()
    for stage in reader.ds.pipeline:
        options = getattr(stage, "kw", {})
        if "rng" in options:
            options["rng"] = random.Random(reader.worker_seed + epoch)
        if "handler" in options:
            options["handler"] = _raise
            stage.args = tuple(_Decoding(argument, start) for argument in stage.args)


class _Decoding:
    """A function of a sample that raises ValueError with the name of the sample. In the place of the first `left_out`
    samples it gives an empty one, as a pipeline that gave none would end."""

    def __init__(self, function: Any, left_out: int) -> None:
        self._function, self._left_out = function, left_out

    def __call__(self, sample: dict[str, Any]) -> Any:
        if self._left_out:
            self._left_out -= 1
            return {"jpg": None, "target": None}
        try:
            return self._function(sample)
        except Exception as error:
            raise unreadable(repr(f"{sample.get('__url__')}/{sample.get('__key__')}"), error) from error


def _raise(error: Exception) -> bool:
    raise error
