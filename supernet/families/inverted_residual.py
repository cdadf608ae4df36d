"""Networks of inverted residual blocks (MobileNetV2, V3, EfficientNet) with elastic resolution, width, depth, kernel
size and expansion ratio, as timm's `MobileNetV3`: pooling comes before the last 1x1 convolution.

Choices are named after timm's modules: `blocks.2.depth` and `blocks.2.width` of a stage, `blocks.2.0.kernel_size` and
`blocks.2.0.expand_ratio` of a block, or `blocks.2.kernel_size` where a stage decides for its blocks together. What
cannot vary is no choice.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

from timm.layers import DropPath, get_act_layer, make_divisible
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models._efficientnet_builder import round_channels
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn

from supernet.families.family import Family
from supernet.families.kernel_transform import KernelTransform
from supernet.slicing import Rule
from supernet.space import Arch, Choice, SearchSpace, Value


@dataclass(frozen=True)
class Stage:
    """The blocks at one resolution, and the values that each property may take, smallest first."""

    width: Sequence[int]  # output channels
    depth: Sequence[int]  # number of blocks
    kernel_size: Sequence[int]
    expand_ratio: Sequence[float]  # 1 alone makes depthwise-separable blocks, without the first 1x1 convolution
    stride: int = 1  # of the first block
    se_ratio: float = 0.0  # squeeze-and-excitation channels, as a part of the expanded ones; 0 for none
    act: str = "hard_swish"  # timm's name of the activation
    residual_first: bool = False  # a residual around the first block too, whose width must then be the input's
    elastic: Literal["block", "stage"] = "block"  # whether kernel size and expansion are chosen by block or by stage

    def __post_init__(self):
        if 1 in self.expand_ratio and len(self.expand_ratio) > 1:
            raise ValueError(
                f"an expansion ratio of 1 makes another type of block and cannot vary with others: {self.expand_ratio}"
            )
        if self.residual_first and (self.stride != 1 or len(self.width) > 1):
            raise ValueError("a residual around the first block needs stride 1 and one width, that of the input")


@dataclass(frozen=True)
class Network:
    """An inverted-residual network around its stages; widths are channels."""

    stages: Sequence[Stage]
    stem: Sequence[int]  # width of the first convolution, 3x3, stride 2
    features: Sequence[int] | float  # width before pooling, or its ratio to the last stage's width
    head: Sequence[int]  # width of the 1x1 convolution after pooling
    resolution: Sequence[int]  # pixels a side
    act: str = "hard_swish"
    bn_eps: float = 1e-5
    bn_momentum: float = 0.1
    head_bias: bool = False
    drop_path_stages: int | None = None  # last stages that have stochastic depth, at one rate; None: all, growing
    kernel_transform: bool = False  # whether a smaller kernel is a learned transform of a larger one's centre


class BlockSpec(NamedTuple):
    """One block of a subnet."""

    in_chs: int
    out_chs: int
    kernel_size: int
    expand_ratio: float
    stride: int
    se_ratio: float


def inverted_residual(network: Network, num_classes: int = 1000, in_chans: int = 3, paper: str = "") -> Family:
    """The family of all subnets of `network`."""
    space = _space(network)
    return Family(
        space=space,
        build=partial(_build, network, num_classes, in_chans),
        macs=lambda arch: _count(network, num_classes, in_chans, arch)[0],
        parameters=lambda arch: _count(network, num_classes, in_chans, arch)[1],
        num_classes=num_classes,
        in_chans=in_chans,
        input_size=network.resolution[-1],
        rules=_rules(network) if network.kernel_transform else {},
        paper=paper,
        pieces=partial(_pieces, network),
    )


def _space(network: Network) -> SearchSpace:
    choices: dict[str, Choice] = {}

    def declare(name: str, values: Sequence[Value], **conditions) -> None:
        if len(values) > 1:
            choices[name] = Choice(values, **conditions)

    declare("resolution", network.resolution)
    declare("conv_stem.width", network.stem)
    for s, stage in enumerate(network.stages):
        declare(f"blocks.{s}.width", stage.width)
        declare(f"blocks.{s}.depth", stage.depth)
        if stage.elastic == "stage":
            declare(f"blocks.{s}.kernel_size", stage.kernel_size)
            declare(f"blocks.{s}.expand_ratio", stage.expand_ratio)
            continue
        for b in range(stage.depth[-1]):
            deeper = [depth for depth in stage.depth if depth > b]
            when = {} if len(deeper) == len(stage.depth) else {f"blocks.{s}.depth": deeper}
            declare(f"blocks.{s}.{b}.kernel_size", stage.kernel_size, when=when)
            declare(f"blocks.{s}.{b}.expand_ratio", stage.expand_ratio, when=when)
    if not isinstance(network.features, float):
        declare("features.width", network.features)
    declare("conv_head.width", network.head)
    return SearchSpace(choices)


def _rules(network: Network) -> dict[str, Rule]:
    return {
        f"blocks.{s}.*.conv_dw.weight": KernelTransform(stage.kernel_size)
        for s, stage in enumerate(network.stages)
        if len(stage.kernel_size) > 1
    }


def _stem(network: Network, arch: Arch) -> int:
    return arch.get("conv_stem.width", network.stem[-1])


def _head(network: Network, arch: Arch) -> int:
    return arch.get("conv_head.width", network.head[-1])


def _features(network: Network, arch: Arch, in_chs: int) -> int:
    if isinstance(network.features, float):
        return make_divisible(in_chs * network.features)
    return arch.get("features.width", network.features[-1])


def _stages(network: Network, arch: Arch) -> Iterator[list[BlockSpec]]:
    in_chs = _stem(network, arch)
    for s, stage in enumerate(network.stages):
        width = arch.get(f"blocks.{s}.width", stage.width[-1])
        blocks = []
        for b in range(arch.get(f"blocks.{s}.depth", stage.depth[-1])):
            at = f"blocks.{s}.{b}" if stage.elastic == "block" else f"blocks.{s}"
            blocks.append(
                BlockSpec(
                    in_chs,
                    width,
                    arch.get(f"{at}.kernel_size", stage.kernel_size[-1]),
                    arch.get(f"{at}.expand_ratio", stage.expand_ratio[-1]),
                    stage.stride if b == 0 else 1,
                    stage.se_ratio,
                )
            )
            in_chs = width
        yield blocks


def _pieces(network: Network, arch: Arch) -> dict[str, Hashable]:
    """What determines each module whose sizes vary."""
    stem, head = _stem(network, arch), _head(network, arch)
    pieces: dict[str, Hashable] = {"conv_stem": stem, "bn1": stem}
    for s, blocks in enumerate(_stages(network, arch)):
        pieces |= {f"blocks.{s}.{b}": block for b, block in enumerate(blocks)}
    features = _features(network, arch, blocks[-1].out_chs)
    pieces |= {f"blocks.{len(network.stages)}.0": (blocks[-1].out_chs, features)}
    return pieces | {"conv_head": (features, head), "classifier": head}


def _build(
    network: Network,
    num_classes: int,
    in_chans: int,
    arch: Arch,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> MobileNetV3:
    block_args: list[list[dict]] = []
    for stage, blocks in zip(network.stages, _stages(network, arch)):
        block_args.append([])
        for b, block in enumerate(blocks):
            args = {
                "block_type": "ds" if block.expand_ratio == 1 else "ir",
                "dw_kernel_size": block.kernel_size,
                "out_chs": block.out_chs,
                "stride": block.stride,
                "se_ratio": block.se_ratio,
                "act_layer": get_act_layer(stage.act),
                "noskip": b == 0 and not stage.residual_first,
            }
            block_args[-1].append(args if block.expand_ratio == 1 else args | {"exp_ratio": block.expand_ratio})
    features = _features(network, arch, block.out_chs)
    block_args.append([{"block_type": "cn", "kernel_size": 1, "out_chs": features, "stride": 1, "act_layer": None}])
    model = MobileNetV3(
        block_args,
        num_classes=num_classes,
        in_chans=in_chans,
        stem_size=_stem(network, arch),
        num_features=_head(network, arch),
        head_bias=network.head_bias,
        act_layer=get_act_layer(network.act),
        norm_layer=partial(nn.BatchNorm2d, eps=network.bn_eps, momentum=network.bn_momentum),
        se_layer=partial(SqueezeExcite, gate_layer="hard_sigmoid", force_act_layer=nn.ReLU, rd_round_fn=round_channels),
        round_chs_fn=int,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate if network.drop_path_stages is None else 0.0,
    )
    if drop_path_rate and network.drop_path_stages is not None:
        count = len(network.stages)
        for stage in model.blocks[count - network.drop_path_stages : count]:
            for block in stage:
                block.drop_path = DropPath(drop_path_rate)
    return model


def _count(network: Network, num_classes: int, in_chans: int, arch: Arch) -> tuple[int, int]:
    """MACs and parameters of a subnet, layer by layer."""
    size = _halved(arch.get("resolution", network.resolution[-1]))
    stem, head = _stem(network, arch), _head(network, arch)
    macs = 9 * in_chans * stem * size**2
    parameters = (9 * in_chans + 2) * stem
    for blocks in _stages(network, arch):
        for block in blocks:
            block_macs, block_parameters = _count_block(block, size)
            size = _halved(size) if block.stride == 2 else size
            macs += block_macs
            parameters += block_parameters
    features = _features(network, arch, block.out_chs)
    macs += block.out_chs * features * size**2 + features * head + head * num_classes
    parameters += (block.out_chs + 2) * features + features * head + network.head_bias * head
    return macs, parameters + (head + 1) * num_classes


@functools.cache
def _count_block(block: BlockSpec, size: int) -> tuple[int, int]:
    """MACs and parameters of a block whose input is `size` pixels a side; BatchNorm has two parameters a channel."""
    out_size = _halved(size) if block.stride == 2 else size
    mid_chs, macs, parameters = block.in_chs, 0, 0
    if block.expand_ratio != 1:
        mid_chs = make_divisible(block.in_chs * block.expand_ratio)
        macs += block.in_chs * mid_chs * size**2
        parameters += (block.in_chs + 2) * mid_chs
    macs += (block.kernel_size**2 + block.out_chs) * mid_chs * out_size**2
    parameters += (block.kernel_size**2 + 2) * mid_chs + (mid_chs + 2) * block.out_chs
    if block.se_ratio:
        squeezed = round_channels(mid_chs * block.se_ratio)
        macs += 2 * mid_chs * squeezed
        parameters += 2 * mid_chs * squeezed + squeezed + mid_chs
    return macs, parameters


def _halved(size: int) -> int:
    return (size + 1) // 2
