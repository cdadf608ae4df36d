"""The moving average of a network's weights, which is the network to use."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage(nn.Module):
    """An exponential moving average of all tensors in the state dict of a network, parameters and buffers:

        average <- decay * average + (1 - decay) * weight,    with a decay of 0 in the first two steps

    Whole numbers are copied. State-dict keys are `module.NAME`, as those of timm's ModelEmaV3. A tensor with several
    names is averaged once a step, where ModelEmaV3 averages it once for each name; otherwise both do the same.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        super().__init__()
        self.module = deepcopy(net).eval()
        self._decay = decay

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Follow `net` after the step `step`, counted from 0."""
        averages, weights = [], []
        for average, weight in _pairs(self.module, net):
            if average.is_floating_point():
                averages.append(average)
                weights.append(weight)
            else:
                average.copy_(weight)
        get_ema_multi_avg_fn(self._decay if step > 1 else 0.0)(averages, weights, None)


def _pairs(average: nn.Module, net: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The tensors of both, each once however many names it has."""
    tensors = zip(average.state_dict(keep_vars=True).values(), net.state_dict(keep_vars=True).values(), strict=True)
    return list({id(weight): (mean, weight) for mean, weight in tensors}.values())
