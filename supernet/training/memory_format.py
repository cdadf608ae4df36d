"""The order in which images and kernels lie in memory."""

from __future__ import annotations

import itertools

import torch
from torch import nn


def channels_last(module: nn.Module) -> nn.Module:
    """Put the kernels of `module` that are of four dimensions into the channels-last format, in place; returns it.

    `module.to(memory_format=torch.channels_last)` does the same, but fails on those of five.
    """
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if tensor.dim() == 4:  # `contiguous` would leave 1x1 kernels as they are, for which other sums are then taken
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return module
