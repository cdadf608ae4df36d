"""Once-for-All's ResNet-50D space (Cai et al., arXiv 1908.09791, and the authors' release): bottleneck blocks with
elastic depth, width and expansion ratio, as timm's `ResNet`.

Choices are named after timm's modules: `layer2.depth` and `layer2.width` of a stage, `layer2.0.expand_ratio` of a
block.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from timm.layers import make_divisible
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from supernet.families.family import Family
from supernet.space import Arch, Choice, SearchSpace

_WIDTHS = (256, 512, 1024, 2048)  # of the four stages at width multiplier 1
_DEPTHS = (2, 2, 4, 2)  # of the four stages at depth 0


class BottleneckSpec(NamedTuple):
    """One bottleneck block of a subnet."""

    in_chs: int
    mid_chs: int
    out_chs: int
    stride: int
    downsample: bool  # whether the shortcut is an average pooling and a 1x1 convolution


def ofa_resnet50(
    num_classes: int = 1000,
    in_chans: int = 3,
    depth: Sequence[int] = (0, 1, 2),
    expand_ratio: Sequence[float] = (0.2, 0.25, 0.35),
    width_mult: Sequence[float] = (0.65, 0.8, 1.0),
) -> Family:
    """Once-for-All's ResNet-50D: stages of 2, 2, 4 and 2 blocks and `depth` more, an expansion ratio for every block
    (mid channels over output channels), a width multiplier for the stem and for every stage, resolution 128 to 224 in
    steps of 4.

    The stem is ResNet-D's as timm has it: three 3x3 convolutions, the first two with half the channels of the third,
    all three always present. The authors' stem has a residual around the second, which may also be left out, and
    chooses its width independently.
    """
    network = _Network(tuple(depth), tuple(expand_ratio), tuple(width_mult), num_classes, in_chans)
    return Family(
        space=_space(network),
        build=partial(_build, network),
        macs=lambda arch: _count(network, arch)[0],
        parameters=lambda arch: _count(network, arch)[1],
        num_classes=num_classes,
        in_chans=in_chans,
        input_size=224,
        paper="Cai et al. 2020, arXiv 1908.09791",
    )


@dataclass(frozen=True)
class _Network:
    depth: tuple[int, ...]
    expand_ratio: tuple[float, ...]
    width_mult: tuple[float, ...]
    num_classes: int
    in_chans: int

    def widths(self, width: int) -> list[int]:
        """The values, in channels, of a layer that is `width` wide at multiplier 1."""
        return sorted({make_divisible(width * mult) for mult in self.width_mult})


def _space(network: _Network) -> SearchSpace:
    choices = {"resolution": Choice(range(128, 225, 4)), "conv1.width": Choice(network.widths(64))}
    for s, (width, base_depth) in enumerate(zip(_WIDTHS, _DEPTHS), start=1):
        depths = [base_depth + depth for depth in network.depth]
        choices[f"layer{s}.depth"] = Choice(depths)
        choices[f"layer{s}.width"] = Choice(network.widths(width))
        for b in range(depths[-1]):
            deeper = [depth for depth in depths if depth > b]
            when = {} if len(deeper) == len(depths) else {f"layer{s}.depth": deeper}
            choices[f"layer{s}.{b}.expand_ratio"] = Choice(network.expand_ratio, when)
    return SearchSpace(choices)


def _stages(arch: Arch) -> Iterator[list[BottleneckSpec]]:
    in_chs = arch["conv1.width"]
    for s in range(1, len(_WIDTHS) + 1):
        width = arch[f"layer{s}.width"]
        blocks = []
        for b in range(arch[f"layer{s}.depth"]):
            mid_chs = make_divisible(round(width * arch[f"layer{s}.{b}.expand_ratio"]))
            blocks.append(BottleneckSpec(in_chs, mid_chs, width, 2 if b == 0 and s > 1 else 1, b == 0))
            in_chs = width
        yield blocks


def _build(network: _Network, arch: Arch, drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> ResNet:
    stages = list(_stages(arch))
    bottleneck = _Bottlenecks([block.mid_chs for stage in stages for block in stage])
    return ResNet(
        bottleneck,
        layers=tuple(len(stage) for stage in stages),
        channels=tuple(stage[0].out_chs // Bottleneck.expansion for stage in stages),
        num_classes=network.num_classes,
        in_chans=network.in_chans,
        stem_type="deep",
        stem_width=arch["conv1.width"] // 2,
        avg_down=True,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )


class _Bottlenecks:
    """Makes timm's bottleneck blocks one after the other, each with its own number of mid channels."""

    expansion = Bottleneck.expansion

    def __init__(self, mid_chs: Sequence[int]) -> None:
        self._mid_chs = iter(mid_chs)

    def __call__(self, in_chs: int, planes: int, stride: int, downsample: nn.Module | None, **options) -> Bottleneck:
        # timm rounds planes * base_width / 64 down; the half keeps a rounding error from costing a channel
        options["base_width"] = 64 * (next(self._mid_chs) + 0.5) / planes
        return Bottleneck(in_chs, planes, stride, downsample, **options)


def _count(network: _Network, arch: Arch) -> tuple[int, int]:
    """MACs and parameters of a subnet, layer by layer."""
    size, stem = _halved(arch["resolution"]), arch["conv1.width"]
    kernels = 9 * (network.in_chans * (stem // 2) + (stem // 2) ** 2 + (stem // 2) * stem)
    macs, parameters = kernels * size**2, kernels + 4 * stem
    size = _halved(size)  # the max pooling
    for blocks in _stages(arch):
        for block in blocks:
            block_macs, block_parameters = _count_block(block, size)
            size = _halved(size) if block.stride == 2 else size
            macs += block_macs
            parameters += block_parameters
    return macs + block.out_chs * network.num_classes, parameters + (block.out_chs + 1) * network.num_classes


@functools.cache
def _count_block(block: BottleneckSpec, size: int) -> tuple[int, int]:
    """MACs and parameters of a block whose input is `size` pixels a side; BatchNorm has two parameters a channel."""
    in_chs, mid_chs, out_chs = block.in_chs, block.mid_chs, block.out_chs
    out_size = _halved(size) if block.stride == 2 else size
    macs = in_chs * mid_chs * size**2 + (9 * mid_chs + out_chs) * mid_chs * out_size**2
    parameters = (in_chs + 2 + 9 * mid_chs + 2 + out_chs) * mid_chs + 2 * out_chs
    if block.downsample:
        macs += in_chs * out_chs * out_size**2
        parameters += (in_chs + 2) * out_chs
    return macs, parameters


def _halved(size: int) -> int:
    return (size + 1) // 2
