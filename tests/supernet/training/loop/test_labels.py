"""Weights of rare classes by hand, and mixed images against Mixup's and CutMix's formulas."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import Subset

from supernet.tasks import Classification
from supernet.training.data import DataConfig, load_data
from supernet.training.loop.config import LoopConfig
from supernet.training.loop.labels import Mixing, balanced_weights, with_class_weights

TASK = Classification(10, label_smoothing=0.1)


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig())


@pytest.fixture(scope="module")
def batch(data):
    return data.images(data.train, 16, 8)


def test_each_class_has_the_same_part_in_the_loss():
    weights = balanced_weights([6, 3, 0, 1])
    assert weights == pytest.approx((10 / 18, 10 / 9, 0.0, 10 / 3))
    parts = [weight * count for weight, count in zip(weights, (6, 3, 0, 1))]
    assert parts == pytest.approx([10 / 3, 10 / 3, 0, 10 / 3])


def test_the_weights_are_those_of_the_images_to_train_on(data):
    few = dataclasses.replace(data, train=Subset(data.train, range(30)))
    counts = Counter(few.train[index][1] for index in range(30))
    task = with_class_weights(TASK, LoopConfig(class_weights=True), few)
    assert task.class_weights == pytest.approx([30 / len(counts) / counts[k] if counts[k] else 0.0 for k in range(10)])
    logits, labels = torch.randn(5, 10), torch.tensor([0, 3, 3, 7, 9])
    expected = F.cross_entropy(logits, labels, torch.tensor(task.class_weights), label_smoothing=0.1)
    assert torch.equal(task.loss(logits, (None, labels)), expected)
    assert with_class_weights(TASK, LoopConfig(), data) is TASK


def test_images_and_labels_are_mixed_alike(batch):
    images, labels = batch
    mixed, soft = Mixing(LoopConfig(mixup=0.4), TASK)(3, batch)
    own, other = F.one_hot(labels, 10).float(), F.one_hot(labels.flip(0), 10).float()
    part = _part(soft, own, other)
    assert 0 < part < 1
    assert torch.allclose(mixed, part * images + (1 - part) * images.flip(0), atol=1e-6)
    assert torch.equal(batch[0], images)  # which others may still need


def test_a_part_of_another_image_is_put_in(batch):
    images, labels = batch
    mixed, soft = Mixing(LoopConfig(cutmix=1.0), TASK)(1, batch)
    own, other = F.one_hot(labels, 10).float(), F.one_hot(labels.flip(0), 10).float()
    is_own = (mixed == images).all(1)
    assert torch.equal(mixed, torch.where(is_own[:, None], images, images.flip(0)))
    inside = (mixed == images.flip(0)).all(1) & ~is_own
    rows, columns = np.where(inside.any(0))
    area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    assert _part(soft, own, other) == pytest.approx(1 - area / 16**2, abs=1e-6)


def _part(soft, own, other):
    """That of an image's own label, of the images that are mixed with one of another label."""
    mixed = (own != other).any(1)
    parts = (soft * own).sum(1)[mixed]
    assert torch.allclose(soft, parts[0] * own + (1 - parts[0]) * other, atol=1e-6)
    return parts[0].item()


def test_what_is_mixed_follows_from_seed_and_step(batch):
    mixing = Mixing(LoopConfig(mixup=0.4, cutmix=1.0, seed=1), TASK)
    assert torch.equal(mixing(5, batch)[0], mixing(5, batch)[0])
    assert not torch.equal(mixing(5, batch)[0], mixing(6, batch)[0])
    unmixed = Mixing(LoopConfig(mixup=0.4, mix_prob=0.0), TASK)(0, batch)
    assert torch.equal(unmixed[0], batch[0])
    assert torch.equal(unmixed[1], F.one_hot(batch[1], 10).float())
    assert Mixing(LoopConfig(), TASK)(0, batch) is batch


def test_what_cannot_be_mixed_or_weighed_is_refused(data):
    with pytest.raises(ValueError, match="an even number of images"):
        Mixing(LoopConfig(mixup=0.1, batch_size=7), TASK)
    with pytest.raises(ValueError, match=r"there is neither: leave 0\.5 out"):
        LoopConfig(mix_prob=0.5)
    with pytest.raises(ValueError, match="images of classes, which Classification has not"):
        Mixing(LoopConfig(cutmix=0.1), Classification())
    with pytest.raises(ValueError, match="labels the dataset tells"):
        with_class_weights(TASK, LoopConfig(class_weights=True), dataclasses.replace(data, train=[data.train[0]]))


def test_balanced_epochs_have_every_class_equally_often(data):
    labels = np.array([data.train.dataset.targets[index] for index in data.train.indices])
    chosen = [*np.where(labels == 0)[0][:60], *np.where(labels == 1)[0][:4]]
    config = dataclasses.replace(data.config, balanced=True)
    few = dataclasses.replace(data, train=Subset(data.train, [int(index) for index in chosen]), config=config)

    def drawn(steps):
        return [labels.tolist() for _, labels in few.training_batches(8, 16, 0, steps)]

    epochs = drawn(range(40))
    assert sum(sum(own) for own in epochs) / 640 == pytest.approx(0.5, abs=0.06)  # 3 standard errors
    assert epochs[4:8] != epochs[:4]
    assert drawn(range(5, 8)) == epochs[5:8]
