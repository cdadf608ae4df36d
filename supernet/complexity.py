"""Counting what a plain module costs, whatever it is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_macs(module: nn.Module, input_size: Sequence[int]) -> int:
    """Multiply-accumulates of the convolutions and matrix products of `module` for one image [C, H, W].

    Follows a forward pass on the meta device, without data; the module's weights may lie anywhere. Tens of
    milliseconds a module: families with a formula of their own are much faster.
    """
    on_meta = module.to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        on_meta(torch.empty(1, *input_size, device="meta"))
    return counter.get_total_flops() // 2


def count_parameters(module: nn.Module) -> int:
    """Trainable parameters of `module`."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
