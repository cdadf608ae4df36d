"""NAS-Bench-Macro: eight layers, each an identity or one of two inverted residual blocks (Su et al., CVPR 2021,
arXiv 2103.11922, section 4.4), for images of 32 pixels.

The choice `block.3` is the operation of the fourth layer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import partial

from timm.models._efficientnet_blocks import InvertedResidual
from torch import Tensor, nn

from supernet.families.family import Family
from supernet.space import Arch, SearchSpace

# B batch, C channels, H height, W width, K classes

OPERATIONS = ("identity", "mbconv_k3_e3", "mbconv_k5_e6")  # in the order of the benchmark's digits
_BLOCKS = {"mbconv_k3_e3": (3, 3), "mbconv_k5_e6": (5, 6)}  # kernel size, expansion of the input channels
_STAGES = ((2, 64), (3, 128), (3, 256))  # layers, channels; the first layer of each has stride 2
_STEM, _FEATURES = 32, 1280
_LAYERS = sum(layers for layers, _ in _STAGES)


def nasbench_macro(num_classes: int = 10, in_chans: int = 3) -> Family:
    """The 3^8 = 6,561 networks of NAS-Bench-Macro.

    Where stride or channels change, the identity is a 1x1 convolution with BatchNorm.
    """
    return Family(
        space=SearchSpace({f"block.{layer}": OPERATIONS for layer in range(_LAYERS)}),
        build=partial(_build, num_classes, in_chans),
        macs=lambda arch: _count(num_classes, in_chans, arch)[0],
        parameters=lambda arch: _count(num_classes, in_chans, arch)[1],
        num_classes=num_classes,
        in_chans=in_chans,
        input_size=32,
        paper="Su et al. 2021, arXiv 2103.11922",
    )


def to_string(arch: Mapping[str, str]) -> str:
    """The benchmark's name of an architecture: eight digits, the indices of the operations."""
    return "".join(str(OPERATIONS.index(arch[f"block.{layer}"])) for layer in range(_LAYERS))


def from_string(text: str) -> Arch:
    """The architecture with this name; the inverse of `to_string`. ValueError if there is none."""
    if len(text) != _LAYERS or not set(text) <= {"0", "1", "2"}:
        raise ValueError(f"an architecture of NAS-Bench-Macro is {_LAYERS} digits from 0 to 2, not {text!r}")
    return Arch({f"block.{layer}": OPERATIONS[int(digit)] for layer, digit in enumerate(text)})


class NASBenchMacro(nn.Module):
    """The network of an architecture: images [B, 3, H, W] to logits [B, K]."""

    def __init__(
        self,
        arch: Mapping[str, str],
        num_classes: int,
        in_chans: int,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = _conv_bn_relu(in_chans, _STEM, 3)
        self.blocks = nn.Sequential()
        for layer, (in_chs, out_chs, stride, operation) in enumerate(_layers(arch)):
            block = _operation(operation, in_chs, out_chs, stride, drop_path_rate * layer / _LAYERS)
            # the operation is part of the name, so that operations share no weights
            self.blocks.append(nn.Sequential(OrderedDict({operation: block})))
        self.head = nn.Sequential(
            _conv_bn_relu(out_chs, _FEATURES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(drop_rate)
        )
        self.classifier = nn.Linear(_FEATURES, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.head(self.blocks(self.stem(x))))


def _layers(arch: Mapping[str, str]) -> Iterator[tuple[int, int, int, str]]:
    """Input channels, output channels, stride and operation of every layer."""
    in_chs, layer = _STEM, 0
    for layers, width in _STAGES:
        for index in range(layers):
            yield in_chs, width, 1 if index else 2, arch[f"block.{layer}"]
            in_chs = width
            layer += 1


def _operation(name: str, in_chs: int, out_chs: int, stride: int, drop_path_rate: float) -> nn.Module:
    if name in _BLOCKS:
        kernel_size, expand_ratio = _BLOCKS[name]
        return InvertedResidual(
            in_chs,
            out_chs,
            dw_kernel_size=kernel_size,
            stride=stride,
            exp_ratio=expand_ratio,
            act_layer=nn.ReLU,
            drop_path_rate=drop_path_rate,
        )
    if stride == 1 and in_chs == out_chs:
        return nn.Identity()
    return nn.Sequential(
        OrderedDict(conv=nn.Conv2d(in_chs, out_chs, 1, stride, bias=False), bn=nn.BatchNorm2d(out_chs))
    )


def _conv_bn_relu(in_chs: int, out_chs: int, kernel_size: int) -> nn.Sequential:
    conv = nn.Conv2d(in_chs, out_chs, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_chs), act=nn.ReLU()))


def _build(
    num_classes: int, in_chans: int, arch: Arch, drop_rate: float = 0.0, drop_path_rate: float = 0.0
) -> NASBenchMacro:
    return NASBenchMacro(arch, num_classes, in_chans, drop_rate, drop_path_rate)


def _count(num_classes: int, in_chans: int, arch: Mapping[str, str]) -> tuple[int, int]:
    """MACs and parameters of a network; BatchNorm has two parameters a channel."""
    size = 32
    macs, parameters = 9 * in_chans * _STEM * size**2, (9 * in_chans + 2) * _STEM
    for in_chs, out_chs, stride, operation in _layers(arch):
        pixels = size**2
        size //= stride
        if operation in _BLOCKS:
            kernel_size, expand_ratio = _BLOCKS[operation]
            mid_chs = in_chs * expand_ratio
            macs += in_chs * mid_chs * pixels + (kernel_size**2 + out_chs) * mid_chs * size**2
            parameters += (in_chs + 2 + kernel_size**2 + 2) * mid_chs + (mid_chs + 2) * out_chs
        elif stride > 1 or in_chs != out_chs:
            macs += in_chs * out_chs * size**2
            parameters += (in_chs + 2) * out_chs
    macs += out_chs * _FEATURES * size**2 + _FEATURES * num_classes
    return macs, parameters + (out_chs + 2) * _FEATURES + (_FEATURES + 1) * num_classes
