"""Decoded images in memory: the same ones, read once, shared by the processes that load them."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset

from supernet.training.data import DataConfig, ImageData
from supernet.training.data.cache import Cached
from supernet.training.data.folders import ImageFolder
from supernet.training.data.image_data import open_images
from supernet.training.data.images import to_rgb

SIZES = [(5, 7), (8, 3), (6, 6), (4, 9), (7, 7), (9, 5)]
MODES = ["RGB", "L", "P", "RGBA", "RGB", "RGB"]


class Folder(Dataset):
    """Images of several sizes and modes, which notes by a file a time what was read."""

    classes = ("a", "b")
    names = None

    def __init__(self, folder):
        self.folder = folder
        self.targets = [index % 2 for index in range(len(SIZES))]

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, index):
        (self.folder / f"{index}-{len(list(self.folder.glob(f'{index}-*')))}").touch()
        pixels = np.random.default_rng(index).integers(0, 256, (*SIZES[index][::-1], 3), np.uint8)
        image = Image.fromarray(pixels)
        if index == 4:
            image.getexif()[0x0112] = 6  # turned
        return image.convert(MODES[index]), self.targets[index]

    def read(self):
        """How often each image was read."""
        return [len(list(self.folder.glob(f"{index}-*"))) for index in range(len(self))]


def images_of(folder, workers=0):
    return ImageData(folder, Subset(folder, [0]), folder, folder.classes, DataConfig("folder"), workers)


def batches(data, steps):
    """Pixels and labels of the steps, and those to judge by."""
    data = data.compact()
    found = [*data.training_batches(8, 2, 0, range(steps)), *data.evaluation_batches(data.holdout, 8)]
    return [(pixels.values, labels) for pixels, labels in found]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_and_images_are_read_once(tmp_path, workers):
    folders = []
    for name in ("plain", "cached"):
        (tmp_path / name).mkdir()
        folders.append(Folder(tmp_path / name))
    plain = batches(images_of(folders[0]), steps=9)
    cached = batches(images_of(folders[1], workers).cached(10_000), steps=9)
    assert len(plain) == len(cached) == 10
    for expected, own in zip(plain, cached):
        assert all(torch.equal(*pair) for pair in zip(expected, own))
    assert folders[0].read() == [4, 3, 3, 3, 3, 3]
    counts = folders[1].read()
    assert max(counts) <= (1 if workers == 0 else 2)  # two processes may read the same one at first
    assert min(counts) == 1


def test_what_does_not_fit_is_read_anew(tmp_path):
    folder = Folder(tmp_path)
    kept = Cached(folder, 3 * (5 * 7 + 8 * 3))
    first = [kept[index] for index in (0, 1, 2)]
    again = [kept[index] for index in (0, 1, 2)]
    assert folder.read() == [1, 1, 2, 0, 0, 0]
    assert kept.bytes_kept == 3 * (5 * 7 + 8 * 3)
    for (image, label), (other, other_label) in zip(first, again):
        assert (image.tobytes(), image.size, label) == (other.tobytes(), other.size, other_label)


def test_every_kind_of_image_is_what_the_transforms_would_have_made_of_it(tmp_path):
    folder = Folder(tmp_path)
    kept = Cached(folder, 10_000)
    for index in range(len(folder)):
        expected = to_rgb(folder[index][0])
        for _ in range(2):
            image, label = kept[index]
            assert (image.mode, image.size, image.tobytes()) == ("RGB", expected.size, expected.tobytes())
            assert label == index % 2


def test_a_copy_reads_for_itself_and_tells_the_same(tmp_path):
    kept = Cached(Folder(tmp_path), 10_000)
    kept[0]
    copy = pickle.loads(pickle.dumps(kept))
    assert copy[0][0].tobytes() == kept[0][0].tobytes()
    assert copy.dataset.read()[0] == 2
    assert (copy.classes, copy.targets, copy.names) == (("a", "b"), kept.targets, None)
    assert not hasattr(kept, "samples")


def test_a_lock_that_is_never_given_back_costs_no_image(tmp_path, monkeypatch):
    monkeypatch.setattr("supernet.training.data.cache.LOCK_SECONDS", 0.01)
    folder = Folder(tmp_path)
    kept = Cached(folder, 10_000)
    kept._lock.acquire()
    assert kept[0][0].tobytes() == kept[0][0].tobytes()
    assert folder.read()[0] == 2


def test_an_error_names_the_image_each_time(tmp_path):
    from supernet.training.data.folders import File

    (tmp_path / "broken.png").write_bytes(b"no image")
    path = str(tmp_path / "broken.png")
    kept = Cached(ImageFolder([File(path, path)], [0], ("a",)), 1000)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"broken\.png"):
            kept[0]


def test_the_digits_say_the_same_of_themselves(tmp_path):
    data = open_images(DataConfig())
    cached = data.cached(10_000)
    assert cached.description() == data.description()
    assert np.array_equal(cached.training_labels(), data.training_labels())
    assert cached.train.dataset is cached.holdout.dataset
    assert dataclasses.replace(cached, workers=None)._workers_for(cached.train) == 0


def test_more_memory_than_there_is_is_named():
    for most in (2**62, 2**70):
        with pytest.raises(ValueError, match=f"cache_bytes is more memory than this machine gives: {most}"):
            Cached([], most)
