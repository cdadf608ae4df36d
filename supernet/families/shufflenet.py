"""The single-path space of ShuffleNetV2 blocks (SPOS, Guo et al., ECCV 2020, arXiv 1904.00420, section 4 and table 1).

The choice `blocks.3` is the operation of the fourth block, and `blocks.3.scale`, where channels are searched as well,
what the width of its middle is multiplied by.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from functools import lru_cache, partial
from itertools import pairwise
from typing import NamedTuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from supernet.families.family import Family
from supernet.space import Arch, SearchSpace

# B batch, C channels, H height, W width, K classes

KERNEL_SIZES = {"shuffle_3": 3, "shuffle_5": 5, "shuffle_7": 7, "xception": 3}
OPERATIONS = tuple(KERNEL_SIZES)  # in the order of the authors' numbers, 0 to 3
SCALES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)
_STAGES = ((4, 64), (4, 160), (8, 320), (4, 640))  # blocks, channels; the first block of each has stride 2
_STEM, _FEATURES = 16, 1024
_BLOCKS = sum(blocks for blocks, _ in _STAGES)
_LEAST = 3  # pixels a side of what the last block gives


class Layer(NamedTuple):
    """Where a block is: what comes in, and what goes out. The first block of a stage changes the channels."""

    in_chs: int
    out_chs: int
    stride: int
    size: int  # pixels a side of what comes in

    @property
    def is_first(self) -> bool:
        return self.in_chs != self.out_chs

    @property
    def main_chs(self) -> tuple[int, int]:
        """Channels that go into the main branch, which in a first block are all and else half of them, and that come
        out; those of the other branch are as many as go in."""
        into = self.in_chs if self.is_first else self.in_chs // 2
        return into, self.out_chs - into

    def middle(self, scale: float) -> int:
        """Channels in the middle of the main branch, for a scale in tenths."""
        return self.out_chs // 2 * round(10 * scale) // 10


class Network(NamedTuple):
    num_classes: int
    in_chans: int
    stem_stride: int
    layers: tuple[Layer, ...]
    affine: bool

    @property
    def last_size(self) -> int:
        return -(-self.layers[-1].size // self.layers[-1].stride)


def shufflenet_spos(
    num_classes: int = 1000,
    in_chans: int = 3,
    input_size: int = 224,
    channel_search: bool = False,
    affine: bool = False,
) -> Family:
    """The 4^20 networks of SPOS: 20 blocks, each of ShuffleNetV2 with kernels of 3, 5 or 7, or like Xception; with
    `channel_search`, each block's middle 0.2 to 1.6 times as wide.

    As the authors', the supernet's BatchNorm has no learned scale and shift; with `affine` it has, as in networks that
    are trained alone. For small images, the first of the five strides of 2 are left out until three pixels a side, of
    32 in four, come out of the last block. Stochastic depth, which the authors do not use, leaves out the main branch
    of blocks that are no first ones of a stage.

    ValueError for images of less than 3 pixels.
    """
    if input_size < _LEAST:
        raise ValueError(f"images have at least {_LEAST} pixels a side, not {input_size}")
    network = _network(num_classes, in_chans, input_size, affine)
    choices: dict[str, tuple] = {f"blocks.{block}": OPERATIONS for block in range(_BLOCKS)}
    if channel_search:
        choices |= {f"blocks.{block}.scale": SCALES for block in range(_BLOCKS)}
    return Family(
        space=SearchSpace(choices),
        build=partial(_build, network),
        macs=partial(_count, network, 0),
        parameters=partial(_count, network, 1),
        num_classes=num_classes,
        in_chans=in_chans,
        input_size=input_size,
        pieces=_pieces,
        paper="Guo et al. 2020, arXiv 1904.00420",
    )


def to_string(arch: Mapping[str, str]) -> str:
    """The authors' name of an architecture's operations, without scales: 20 numbers from 0 to 3, as in 2,1,0,...,3."""
    return ",".join(str(OPERATIONS.index(arch[f"blocks.{block}"])) for block in range(_BLOCKS))


def from_string(text: str) -> Arch:
    """The architecture with this name; the inverse of `to_string`. ValueError if there is none."""
    numbers = text.replace(" ", "").split(",")
    if len(numbers) != _BLOCKS or not set(numbers) <= {"0", "1", "2", "3"}:
        raise ValueError(f"an architecture of SPOS is {_BLOCKS} numbers from 0 to 3 with commas between, not {text!r}")
    return Arch({f"blocks.{block}": OPERATIONS[int(number)] for block, number in enumerate(numbers)})


class ShuffleBlock(nn.Module):
    """[B, C, H, W] to [B, C, H, W]: the odd channels through the main branch, the even ones beside it. The first block
    of a stage takes all channels through both, to more channels and, with stride 2, half the size."""

    def __init__(self, layer: Layer, operation: str, middle: int, affine: bool, drop_path_rate: float) -> None:
        super().__init__()
        into, out = layer.main_chs
        size, stride = KERNEL_SIZES[operation], layer.stride
        if operation == "xception":
            widths = [into, middle, middle, out]
            self.main = nn.Sequential()
            for number, (in_chs, out_chs) in enumerate(pairwise(widths)):
                self.main.append(_depthwise(in_chs, size, stride if number == 0 else 1, affine))
                self.main.append(_pointwise(in_chs, out_chs, affine))
        else:
            self.main = nn.Sequential(
                _pointwise(into, middle, affine),
                _depthwise(middle, size, stride, affine),
                _pointwise(middle, out, affine),
            )
        self.drop_path = DropPath(0.0 if layer.is_first else drop_path_rate)
        self.beside = None
        if layer.is_first:
            self.beside = nn.Sequential(_depthwise(into, size, stride, affine), _pointwise(into, into, affine))

    def forward(self, x: Tensor) -> Tensor:
        if self.beside is not None:
            return torch.cat([self.beside(x), self.main(x)], dim=1)
        return torch.cat([x[:, ::2], self.drop_path(self.main(x[:, 1::2]))], dim=1)


class ShuffleNetSPOS(nn.Module):
    """The network of an architecture: images [B, 3, H, W] to logits [B, K]. The classifier has no bias."""

    def __init__(self, network: Network, arch: Mapping, drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.stem = _conv_bn(network.in_chans, _STEM, 3, network.stem_stride, affine=network.affine, relu=True)
        self.blocks = nn.Sequential()
        for block, layer in enumerate(network.layers):
            operation, scale = _choices(arch, block)
            rate = drop_path_rate * block / _BLOCKS
            module = ShuffleBlock(layer, operation, layer.middle(scale), network.affine, rate)
            # the operation is part of the name, so that operations share no weights
            self.blocks.append(nn.Sequential(OrderedDict({operation: module})))
        self.head = nn.Sequential(
            _pointwise(layer.out_chs, _FEATURES, network.affine),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(drop_rate),
        )
        self.classifier = nn.Linear(_FEATURES, network.num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.head(self.blocks(self.stem(x))))


def _network(num_classes: int, in_chans: int, input_size: int, affine: bool) -> Network:
    strides = [2] * (1 + len(_STAGES))
    for dropped in range(1 + len(strides)):
        strides[:dropped] = [1] * dropped
        layers, in_chs, size = [], _STEM, -(-input_size // strides[0])
        for (blocks, out_chs), first in zip(_STAGES, strides[1:]):
            for block in range(blocks):
                layers.append(Layer(in_chs, out_chs, 1 if block else first, size))
                in_chs, size = out_chs, -(-size // layers[-1].stride)
        if size >= _LEAST:
            break
    return Network(num_classes, in_chans, strides[0], tuple(layers), affine)


def _build(network: Network, arch: Arch, drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> ShuffleNetSPOS:
    return ShuffleNetSPOS(network, arch, drop_rate, drop_path_rate)


def _choices(arch: Mapping, block: int) -> tuple[str, float]:
    return arch[f"blocks.{block}"], arch.get(f"blocks.{block}.scale", 1.0)


def _pieces(arch: Arch) -> dict[str, Hashable]:
    return {f"blocks.{block}": _choices(arch, block) for block in range(_BLOCKS)}


def _depthwise(chs: int, kernel_size: int, stride: int, affine: bool) -> nn.Sequential:
    return _conv_bn(chs, chs, kernel_size, stride, groups=chs, affine=affine)


def _pointwise(in_chs: int, out_chs: int, affine: bool) -> nn.Sequential:
    return _conv_bn(in_chs, out_chs, 1, affine=affine, relu=True)


def _conv_bn(
    in_chs: int,
    out_chs: int,
    kernel_size: int,
    stride: int = 1,
    *,
    groups: int = 1,
    affine: bool,
    relu: bool = False,
) -> nn.Sequential:
    conv = nn.Conv2d(in_chs, out_chs, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    layers = OrderedDict[str, nn.Module](conv=conv, bn=nn.BatchNorm2d(out_chs, affine=affine))
    if relu:
        layers["act"] = nn.ReLU()
    return nn.Sequential(layers)


def _count(network: Network, which: int, arch: Mapping) -> int:
    """MACs (0) or parameters (1) of a network."""
    blocks = sum(
        _block(layer, *_choices(arch, block), network.affine)[which] for block, layer in enumerate(network.layers)
    )
    return blocks + _around(network)[which]


@lru_cache
def _around(network: Network) -> tuple[int, int]:
    """MACs and parameters of all but the blocks."""
    stem, features = 9 * network.in_chans * _STEM, network.layers[-1].out_chs * _FEATURES
    classifier = _FEATURES * network.num_classes
    macs = stem * network.layers[0].size ** 2 + features * network.last_size**2 + classifier
    return macs, stem + features + classifier + 2 * network.affine * (_STEM + _FEATURES)


@lru_cache(maxsize=2**14)
def _block(layer: Layer, operation: str, scale: float, affine: bool) -> tuple[int, int]:
    """MACs and parameters of a block."""
    into, out = layer.main_chs
    middle, kernel = layer.middle(scale), KERNEL_SIZES[operation] ** 2
    if operation == "xception":
        before = 0  # weights of what runs before the stride
        after = kernel * (into + 2 * middle) + (into + middle + out) * middle
        normalised = into + 4 * middle + out
    else:
        before = into * middle
        after = (kernel + out) * middle
        normalised = 2 * middle + out
    if layer.is_first:
        after += (kernel + into) * into
        normalised += 2 * into
    pixels = (-(-layer.size // layer.stride)) ** 2
    return before * layer.size**2 + after * pixels, before + after + 2 * affine * normalised
