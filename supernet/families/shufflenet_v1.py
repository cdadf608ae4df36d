"""ShuffleNet, whose convolutions of 1 x 1 are in groups (Zhang et al., CVPR 2018, arXiv 1707.01083, table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from supernet.families.family import Family
from supernet.families.traced.models import from_model

# B batch, C channels, G groups, H height, W width

CHANNELS = {1: (144, 288, 576), 2: (200, 400, 800), 3: (240, 480, 960), 4: (272, 544, 1088), 8: (384, 768, 1536)}
BLOCKS = (4, 8, 4)
STEM = 24


def shufflenet_v1(
    groups: int = 3,
    scale: float = 1.0,
    width: Sequence[float] = (0.5, 0.75, 1.0),
    depth: Sequence[float] = (0.5, 0.75, 1.0),
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    input_size: int = 224,
) -> Family:
    """The family of the ShuffleNet of `groups` with `scale` times its channels, at fractions of its width and depth as
    `supernet.families.from_model` takes them. The middle of a block varies in width where its channels are a multiple
    of the square of the groups; elsewhere channels of one group before the shuffle are in parts of several behind it.

    The two strides of the first layers are 1 for images below 64 pixels. ValueError for a number of groups that the
    paper has no channels for, or for channels that are no multiple of four times the groups.
    """
    if groups not in CHANNELS:
        raise ValueError(f"a ShuffleNet has {', '.join(map(str, CHANNELS))} groups, not {groups}")
    channels = [round(scale * own) for own in CHANNELS[groups]]
    if any(own % (4 * groups) for own in channels):
        raise ValueError(
            f"a quarter of {channels} channels is in {groups} groups alike, which scale {scale} does not give"
        )
    create = partial(ShuffleNet, groups, channels, num_classes, in_chans, stride=2 if input_size >= 64 else 1)
    family = from_model(create, torch.empty(1, in_chans, input_size, input_size, device="meta"), width, depth)
    return replace(family, paper="Zhang et al. 2018, arXiv 1707.01083")


class ShuffleNet(nn.Module):
    def __init__(
        self,
        groups: int,
        channels: Sequence[int],
        num_classes: int,
        in_chans: int,
        stride: int,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(in_chans, STEM, 3, stride, 1, bias=False)
        self.bn_stem, self.pool_stem = nn.BatchNorm2d(STEM), nn.MaxPool2d(3, stride, 1)
        stages, into = [], STEM
        for index, (count, out) in enumerate(zip(BLOCKS, channels)):
            rate = drop_path_rate * (index + 1) / len(BLOCKS)  # grows with the stage
            first = Block(into, out, groups, stride=2, is_first=index == 0)
            stages.append(nn.Sequential(first, *(Block(out, out, groups, drop_path=rate) for _ in range(count - 1))))
            into = out
        self.stages = nn.Sequential(*stages)
        self.drop, self.classifier = nn.Dropout(drop_rate), nn.Linear(into, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.pool_stem(F.relu(self.bn_stem(self.conv_stem(x)))))
        return self.classifier(self.drop(x.mean((2, 3))))


class Block(nn.Module):
    """Figure 2 (b) of the paper, and with a stride (c), where the input is pooled and put beside what comes out. The
    first convolution of the first block has no groups."""

    def __init__(
        self, into: int, out: int, groups: int, stride: int = 1, is_first: bool = False, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        middle, outer = out // 4, out - into if stride > 1 else out
        self.groups, self.stride = groups, stride
        self.conv1 = nn.Conv2d(into, middle, 1, groups=1 if is_first else groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, outer, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        main = F.relu(self.bn1(self.conv1(x)))
        grouped = main.unflatten(1, (self.groups, -1))  # [B, G, C / G, H, W]
        main = grouped.transpose(1, 2).flatten(1, 2)
        main = self.bn3(self.conv3(self.bn2(self.conv2(main))))
        if self.stride > 1:
            return F.relu(torch.cat([F.avg_pool2d(x, 3, self.stride, 1), main], 1))
        return F.relu(x + self.drop_path(main))
