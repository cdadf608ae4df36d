"""Streams without the packages that read them: a reader that reads as those of timm do."""

import itertools
import math
import random

import pytest
import torch
from PIL import Image
from timm.data.dataset import IterableImageDataset
from timm.data.readers.shared_count import SharedCount
from torch.utils.data import get_worker_info

from supernet.training.data.config import DataConfig
from supernet.training.data.datasets import Digits, ImageStream
from supernet.training.data.image_data import ImageData

BATCH = 4
SHARDS = [list(range(0, 5)), list(range(5, 14)), list(range(14, 16)), list(range(16, 23))]  # 23 images, by their shade


class Reader:
    """Whole shards for each process, in the order of an epoch, again and again until it has its number of images.

    As with timm's readers the pipeline is made when it is first needed, and processes share the number of the epoch.
    """

    def __init__(self):
        self.ds, self.epoch_count, self.num_workers, self.read = None, SharedCount(), 1, []

    def set_epoch(self, count):
        self.epoch_count.value = count

    def set_loader_cfg(self, num_workers):
        if self.ds is None:
            self.num_workers = num_workers

    def __len__(self):
        return math.ceil(sum(map(len, SHARDS)) / self.num_workers) * self.num_workers

    def __iter__(self):
        worker = get_worker_info()
        if self.ds is None:
            self.ds, self.num_workers = worker.id if worker else 0, worker.num_workers if worker else 1
        part = itertools.chain.from_iterable(
            ordered_part(self.epoch_count.value, self.ds, self.num_workers) for _ in itertools.count()
        )
        for shade in itertools.islice(part, len(self) // self.num_workers):
            self.read.append(shade)
            yield Image.new("RGB", (8, 8), (10 * shade,) * 3), shade


def ordered_part(epoch, process, processes):
    shards = random.Random(epoch).sample(SHARDS, len(SHARDS))[process::processes]
    return itertools.chain.from_iterable(shards)


def labels_of(process, processes):
    """Those of a process, epoch after epoch."""
    for epoch in itertools.count():
        again = itertools.chain.from_iterable(ordered_part(epoch, process, processes) for _ in itertools.count())
        yield from itertools.islice(again, math.ceil(23 / processes))


def expected_labels(processes, steps):
    """The labels of all steps: processes take turns."""
    own = [labels_of(process, processes) for process in range(processes)]
    return [list(itertools.islice(own[step % processes], BATCH)) for step in range(steps)]


def streamed(workers):
    reader = Reader()
    stream = ImageStream(IterableImageDataset("", reader=reader), "a stream")
    classes = tuple(map(str, range(23)))
    config = DataConfig(scale=(0.2, 0.9), color_jitter=0.4)
    return ImageData(stream, Digits("test"), Digits("test"), classes, config, workers), reader


def steps(data, start, stop=25):
    return [(pixels.values, labels) for pixels, labels in data.training_batches(8, BATCH, 3, range(start, stop))]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # on a machine with fewer cores
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_a_stream_goes_on_where_it_was_with_any_number_of_processes(workers):
    data, _ = streamed(workers)
    whole = steps(data, 0)  # more than four epochs
    assert [labels.tolist() for _, labels in whole] == expected_labels(max(workers, 1), 25)
    for start in (2, 5, 6, 7, 13):
        resumed = steps(streamed(workers)[0], start)
        for (values, labels), (other_values, other_labels) in zip(whole[start:], resumed, strict=True):
            assert torch.equal(values, other_values)
            assert torch.equal(labels, other_labels)


def test_what_is_read_beside_a_stream_does_not_change_it():
    data, _ = streamed(0)
    whole = steps(data, 0)
    batches = data.training_batches(8, BATCH, 3, range(25))
    between = [next(batches) for _ in range(7)]
    assert data.calibration_images(8, 23, seed=0).shape == (23, 3, 8, 8)
    for (values, labels), (pixels, other_labels) in zip(whole, [*between, *batches], strict=True):
        assert torch.equal(values, pixels.values)
        assert torch.equal(labels, other_labels)


def test_epochs_that_are_over_are_not_read(monkeypatch):
    data, reader = streamed(0)
    steps(data, 13)  # 52 images are over, which are two epochs and six
    assert len(reader.read) == 6 + 12 * BATCH
    drawn = []
    monkeypatch.setattr("supernet.training.data.loading.global_seeds", lambda *place: drawn.append(place) or noted())
    steps(streamed(0)[0], 13)
    assert [place[2:] for place in drawn[:2]] == [(2, 6, 0), (2, 7, 0)]
    assert len(drawn) == 12 * BATCH  # what is left out is not augmented


def noted():
    return torch.no_grad()  # a context without effect here
