"""What several benchmarks train: six convolutions on CIFAR-10 at 16 pixels, and its images in memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import nn

from supernet.training.data import DataConfig, ImageData, open_images

SIDE = 16  # pixels
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


def network(seed: int) -> nn.Sequential:
    """Convolutions of 16 to 64 channels, 2.5 million MACs, with torch's weights for the seed."""
    layers: list[nn.Module] = []
    inputs = 3
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for width in (16, 16, 0, 32, 32, 0, 64, 64):
            if width:
                layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
            else:
                layers.append(nn.MaxPool2d(2))
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))
