"""NAS-Bench-201: a cell of four nodes with an operation on each of its six edges, repeated in three stages
(Dong & Yang, ICLR 2020, arXiv 2001.00326, section 2 and figure 1).

An edge is named after the nodes that it joins: the choice `edge.0-1` is the operation from node 0 to node 1.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial

from timm.layers import DropPath
from torch import Tensor, nn

from supernet.families.family import Family
from supernet.space import Arch, SearchSpace

# B batch, C channels, H height, W width, K classes

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NODES = 4
EDGES = tuple(f"{source}-{target}" for target in range(1, NODES) for source in range(target))
STAGES = 3


def nasbench201(num_classes: int = 10, in_chans: int = 3, channels: int = 16, cells: int = 5) -> Family:
    """The 15,625 cells of NAS-Bench-201, in three stages of `cells` cells with `channels`, twice and four times as
    many channels, for images of 32 pixels.

    Different cells may be the same function (an edge behind a `none` matters not), yet count as different.
    """
    if channels < 1 or cells < 1:
        raise ValueError(f"NAS-Bench-201 needs at least 1 channel and 1 cell a stage, not {channels} and {cells}")
    return Family(
        space=SearchSpace({f"edge.{edge}": OPERATIONS for edge in EDGES}),
        build=partial(_build, num_classes, in_chans, channels, cells),
        macs=partial(_macs, num_classes, in_chans, channels, cells),
        parameters=partial(_parameters, num_classes, in_chans, channels, cells),
        num_classes=num_classes,
        in_chans=in_chans,
        input_size=32,
        paper="Dong & Yang 2020, arXiv 2001.00326",
    )


def to_string(arch: Mapping[str, str]) -> str:
    """The benchmark's name of a cell, such as `|none~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|`."""
    nodes = (
        "".join(f"|{arch[f'edge.{source}-{target}']}~{source}" for source in range(target))
        for target in range(1, NODES)
    )
    return "|+".join(nodes) + "|"


def from_string(text: str) -> Arch:
    """The architecture with this name; the inverse of `to_string`. ValueError if there is none."""
    operations = re.findall(r"\|([a-z0-9_]+)~\d", text)
    arch = Arch({f"edge.{edge}": operation for edge, operation in zip(EDGES, operations)})
    if len(arch) != len(EDGES) or not set(operations) <= set(OPERATIONS) or to_string(arch) != text:
        raise ValueError(
            f"a cell is written |op~0|+|op~0|op~1|+|op~0|op~1|op~2|, op one of {', '.join(OPERATIONS)}, not {text!r}"
        )
    return arch


class Zero(nn.Module):
    """The operation `none`: nothing of `x` passes, yet every parameter behind it has a gradient, of zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0


class Cell(nn.Module):
    """Four nodes; each but the first is the sum of one operation on every earlier one. [B, C, H, W] to the same."""

    def __init__(self, arch: Mapping[str, str], channels: int, drop_path_rate: float) -> None:
        super().__init__()
        # the operation is part of the name, so that operations share no weights
        self.edges = nn.ModuleDict(
            {
                edge: nn.Sequential(OrderedDict({arch[f"edge.{edge}"]: _operation(arch[f"edge.{edge}"], channels)}))
                for edge in EDGES
            }
        )
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for target in range(1, NODES):
            nodes.append(sum(self._along(source, target, nodes[source]) for source in range(target)))
        return nodes[-1]

    def _along(self, source: int, target: int, x: Tensor) -> Tensor:
        edge = self.edges[f"{source}-{target}"]
        return edge(x) if isinstance(edge[0], nn.Identity) else self.drop_path(edge(x))


class Reduction(nn.Module):
    """The residual block between stages: [B, C, H, W] to [B, 2C, H/2, W/2]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_a = _relu_conv_bn(channels, 2 * channels, 3, stride=2)
        self.conv_b = _relu_conv_bn(2 * channels, 2 * channels, 3)
        self.downsample = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(channels, 2 * channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(x) + self.conv_b(self.conv_a(x))


class NASBench201(nn.Module):
    """The network of a cell: images [B, 3, H, W] to logits [B, K]."""

    def __init__(
        self,
        arch: Mapping[str, str],
        num_classes: int,
        in_chans: int,
        channels: int,
        cells: int,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_chans, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.stages = nn.Sequential()
        for stage in range(STAGES):
            if stage:
                self.stages.append(Reduction(channels))
                channels *= 2
            self.stages.append(nn.Sequential(*(Cell(arch, channels, drop_path_rate) for _ in range(cells))))
        self.head = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(drop_rate)
        )
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.head(self.stages(self.stem(x))))


def _operation(name: str, channels: int) -> nn.Module:
    if name == "none":
        return Zero()
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return _relu_conv_bn(channels, channels, _kernel_size(name))


def _kernel_size(operation: str) -> int:
    return {"nor_conv_1x1": 1, "nor_conv_3x3": 3}.get(operation, 0)


def _relu_conv_bn(in_chs: int, out_chs: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            relu=nn.ReLU(),
            conv=nn.Conv2d(in_chs, out_chs, kernel_size, stride, padding=kernel_size // 2, bias=False),
            bn=nn.BatchNorm2d(out_chs),
        )
    )


def _build(
    num_classes: int,
    in_chans: int,
    channels: int,
    cells: int,
    arch: Arch,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> NASBench201:
    return NASBench201(arch, num_classes, in_chans, channels, cells, drop_rate, drop_path_rate)


def _macs(num_classes: int, in_chans: int, channels: int, cells: int, arch: Mapping[str, str]) -> int:
    # Halving the size and doubling the channels keeps C^2 H W, so that a cell costs the same in every stage; so does
    # a reduction, whose convolutions of 9 C 2C, 9 2C 2C and C 2C run on a quarter of the pixels: (18 + 36 + 2) / 4.
    a_pixel = sum(_kernel_size(arch[f"edge.{edge}"]) ** 2 for edge in EDGES) * STAGES * cells + 14 * (STAGES - 1)
    return 32**2 * (9 * in_chans * channels + a_pixel * channels**2) + channels * 2 ** (STAGES - 1) * num_classes


def _parameters(num_classes: int, in_chans: int, channels: int, cells: int, arch: Mapping[str, str]) -> int:
    kernels = [size for edge in EDGES if (size := _kernel_size(arch[f"edge.{edge}"]))]
    parameters = (9 * in_chans + 2) * channels
    for stage in range(STAGES):
        if stage:  # 9 C 2C, 9 2C 2C and C 2C, and two BatchNorms of 2C
            parameters += 56 * channels**2 + 8 * channels
            channels *= 2
        parameters += cells * sum(size**2 * channels**2 + 2 * channels for size in kernels)
    return parameters + 2 * channels + (channels + 1) * num_classes
