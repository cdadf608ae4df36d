"""The network of several benchmarks: six convolutions on CIFAR-10 at 16 pixels."""

from __future__ import annotations

import torch
from torch import nn

SIDE = 16  # pixels
EXAMPLE = torch.empty(1, 3, SIDE, SIDE)


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
