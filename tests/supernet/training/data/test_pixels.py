import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from supernet.training.data.batch import examples_in, joined, on, split, with_normalised
from supernet.training.data.config import DataConfig
from supernet.training.data.image_data import open_images
from supernet.training.data.loading import Augmented, Order, collate
from supernet.training.data.pixels import Pixels

CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_pixels(seed=0):
    values = torch.randint(256, (5, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Pixels(values, MEAN, STD)


def test_all_values_are_normalised_as_by_the_transforms_of_timm():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    expected = create_transform(16, crop_pct=1.0, mean=MEAN, std=STD)(Image.fromarray(values))
    found = Pixels(torch.from_numpy(values).permute(2, 0, 1)[None].contiguous(), MEAN, STD).normalised()
    assert found.dtype == torch.float32
    assert torch.equal(found[0], expected)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_batch_is_normalised_where_it_is_put(memory_format, elsewhere):
    pixels, labels = random_pixels(), torch.arange(5)
    images, same_labels, plain = on(CPU, (pixels, labels, "plain"), memory_format)
    assert images.is_contiguous(memory_format=memory_format)
    assert torch.equal(images, pixels.normalised())
    assert same_labels is labels
    assert plain == "plain"
    there, _ = on(torch.device(elsewhere), (pixels, labels), memory_format)
    assert there.device.type == elsewhere
    assert torch.equal(there.cpu(), images)
    checked = with_normalised((pixels, labels), (there, there))
    assert checked[0] is there
    assert checked[1] is labels


def test_pixels_are_taken_apart_and_joined_as_tensors():
    batch = random_pixels(), torch.arange(5)
    assert examples_in(batch) == 5
    parts = split(batch, 2)
    assert [examples_in(part) for part in parts] == [2, 2, 1]
    assert torch.equal(joined(parts)[0].values, batch[0].values)
    assert joined(parts)[0].std == STD


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("re_prob", [0.0, 0.5])
def test_training_images_are_those_that_timm_augments_and_normalises(re_prob, workers):
    data = open_images(DataConfig(re_prob=re_prob, auto_augment="rand-m9-mstd0.5"), workers=workers)
    batches = list(data.training_batches(16, 32, seed=3, steps=range(2)))
    is_pixels = [isinstance(images, Pixels) for images, _ in batches]
    assert is_pixels == [re_prob == 0] * 2  # what is erased has the mean's value, which no 8 bits have
    config = {name: getattr(data.config, name) for name in ("scale", "ratio", "hflip", "color_jitter", "interpolation")}
    transform = create_transform(
        16, is_training=True, auto_augment="rand-m9-mstd0.5", re_prob=re_prob, mean=MEAN, std=STD, **config
    )
    augmented = Augmented(data.train, transform, 3)
    order = Order(len(data.train), 32, data.steps_per_epoch(32), 3, range(2), rank=0, world_size=1)
    for batch, places in zip(batches, order, strict=True):
        images, labels = collate([augmented[place] for place in places])
        found, found_labels = on(CPU, batch)
        assert torch.equal(found, images)
        assert torch.equal(found_labels, labels)


def test_mean_and_standard_deviation_are_those_of_the_settings():
    config = DataConfig(mean=(0.5, 0.25, 0.0), std=(1.0, 0.5, 0.25))
    data = dataclasses.replace(open_images(DataConfig()), config=config)
    pixels, _ = next(data.training_batches(16, 8, seed=0, steps=range(1)))
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    assert torch.equal(on(CPU, pixels), (pixels.values / 255 - mean) / std)
