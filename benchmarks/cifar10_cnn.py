"""What several benchmarks train: six convolutions on CIFAR-10 at 16 pixels, and its images in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from supernet.training.data import DataConfig, ImageData, open_images

SIDE = 16  # pixels
WIDTHS = (16, 32, 64)  # channels at each resolution
EXAMPLE = torch.empty(1, 3, SIDE, SIDE)


def images(folder: Path, count: int, first: int = 0) -> ImageData:
    """CIFAR-10 in `folder`/cifar10, with `count` training images, decoded in memory, from `first` on in a random order;
    some others are held out."""
    root = folder / "cifar10"
    config = DataConfig(
        "folder",
        str(root / "train.tar"),
        test_root=str(root / "val.tar"),
        holdout=0.02,
        scale=(0.5, 1.0),
        color_jitter=0.0,
        crop_pct=1.0,
    )
    data = open_images(config)
    return dataclasses.replace(data, train=[data.train[index] for index in range(first, first + count)])


def network(seed: int, widths: Sequence[int] = WIDTHS) -> nn.Sequential:
    """The convolutions with torch's weights for the seed."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return convolutions(widths)


def convolutions(widths: Sequence[int] = WIDTHS) -> nn.Sequential:
    """Two convolutions at each of three resolutions; of 16 to 64 channels they have 2.5 million MACs."""
    layers: list[nn.Module] = []
    inputs = 3
    for width in widths:
        layers += [nn.MaxPool2d(2)] if layers else []
        for _ in range(2):
            layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))
