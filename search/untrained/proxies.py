"""The small networks that stand in for an architecture when TE-NAS measures it, for the spaces that have them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from timm.models._efficientnet_blocks import InvertedResidual
from torch import nn

from search.untrained.te_nas import Proxies
from supernet.families.nas_bench_201 import Cell, nasbench201
from supernet.families.nas_bench_macro import nasbench_macro
from supernet.space import Arch


def nasbench201_proxies(num_classes: int = 10, in_chans: int = 3) -> Proxies:
    """As the authors of TE-NAS: the tangent kernel of the network of 3 channels with one cell a stage, the regions of a
    single cell of one channel, with BatchNorm and ReLU behind it, on 3x3 pixels of one channel."""
    ntk = nasbench201(num_classes, in_chans, channels=3, cells=1).build
    return Proxies(ntk, lambda arch: _with_head(Cell(arch, channels=1, drop_path_rate=0.0)), patch=(1, 3, 3))


def nasbench_macro_proxies(num_classes: int = 10, in_chans: int = 3) -> Proxies:
    """The tangent kernel of the network itself, and the regions of its blocks with one channel and stride 1, with
    BatchNorm and ReLU behind them, on single pixels of one channel: with more pixels every patch is a region."""

    def blocks(arch: Arch) -> nn.Module:
        return _with_head(*(_BLOCKS[operation]() for operation in arch.values()))

    return Proxies(nasbench_macro(num_classes, in_chans).build, blocks, patch=(1, 1, 1))


PROXIES: dict[str, Callable[[int, int], Proxies]] = {
    "nasbench201": nasbench201_proxies,
    "nasbench_macro": nasbench_macro_proxies,
}
"""By the family's name in `supernet.families.FAMILIES`; functions of the number of classes and of input channels."""

_block = partial(InvertedResidual, 1, 1, act_layer=nn.ReLU)
_BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "mbconv_k3_e3": partial(_block, dw_kernel_size=3, exp_ratio=3),
    "mbconv_k5_e6": partial(_block, dw_kernel_size=5, exp_ratio=6),
}


def _with_head(*blocks: nn.Module) -> nn.Module:
    return nn.Sequential(*blocks, nn.BatchNorm2d(1), nn.ReLU())
