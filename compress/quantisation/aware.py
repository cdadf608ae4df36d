"""Training for int8: a network whose layers compute on rounded values while its weights are trained as they are.

Weights are rounded by `compress.transforms.Bits`, activations to ranges that follow the batches, both with straight-
through gradients (Jacob et al., CVPR 2018, arXiv 1712.05877, section 3). BatchNorm behind a layer need not be folded to
be quantised as it will be: a step a channel times BatchNorm's scale of that channel is the step of the folded weight,
and the integers are the same, for a scale of 0 too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.quantisation.network import Quantisation, Quantised
from compress.quantisation.points import Points, layers
from compress.quantisation.ranges import LEVELS, Range
from compress.transforms import Bits, fold, transformed
from supernet.artifacts.deployment import deployed

# P points

MOMENTUM = 0.01  # of a batch in the ranges
FROZEN_FROM = 2 / 3  # of the training


class QuantisationAware(nn.Module):
    """`network`, the one given, as it computes in int8, to be trained; `ranges` are those to begin with.

    In training mode the ranges are moving averages of each batch's least and largest values, by `MOMENTUM`. For the
    last third of the training, of which `begin_step` tells, they and BatchNorm's statistics stay as they are.

    ValueError for a network whose layers are merged when it is deployed, which would quantise others than those
    trained.
    """

    def __init__(self, network: nn.Module, ranges: Mapping[str, Range], weight_bits: int = 8) -> None:
        super().__init__()
        merged = [name for name, module in network.named_modules() if hasattr(module, "reparameterize")]
        if merged:
            raise ValueError(
                f"the layers of {merged[0]!r} become one when it is deployed: train for int8 what "
                "timm.utils.reparameterize_model makes of it"
            )
        self.network, self.weight_bits = network, weight_bits
        self._index = {point: index for index, point in enumerate(ranges)}
        self._frozen = False
        self.register_buffer("low", torch.tensor([own.low for own in ranges.values()]))  # [P]
        self.register_buffer("high", torch.tensor([own.high for own in ranges.values()]))

    def forward(self, *inputs: Any) -> Any:
        weights = {id(layer.weight): name for name, layer in self._met().items()}
        with Points(weights, self._activation, Bits(self.weight_bits)):
            return self.network(*inputs)

    def begin_step(self, step: int, steps: int) -> None:
        """Freeze ranges and BatchNorm from `step` on, counted from 0, if it is of the last third of `steps`."""
        self._frozen = step >= FROZEN_FROM * steps
        self.train(self.training)

    def train(self, mode: bool = True) -> QuantisationAware:
        super().train(mode)
        for module in self.modules() if self._frozen else ():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not to decay, as timm's models tell theirs."""
        return {f"network.{name}" for name in getattr(self.network, "no_weight_decay", set)()}

    def quantised(self) -> Quantised:
        """What was trained, with the ranges as they are."""
        ranges = {point: Range(self.low[i].item(), self.high[i].item()) for point, i in self._index.items()}
        return Quantised(deployed(self.network), Quantisation(ranges, weight_bits=self.weight_bits))

    def plain(self) -> nn.Module:
        """The network itself, from now on with the values of its rounded weights."""
        return fold(transformed(self.network, {f"{name}.weight": Bits(self.weight_bits) for name in self._met()}))

    def _met(self) -> dict[str, nn.Module]:
        """The layers that calibration has met."""
        return {name: layer for name, layer in layers(self.network).items() if f"{name}.input" in self._index}

    def _activation(self, point: str, x: Tensor) -> Tensor:
        index, values = self._index[point], x.float()
        if self.training and not self._frozen:
            low, high = values.detach().aminmax()
            self.low[index].lerp_(low.clamp(max=0), MOMENTUM)
            self.high[index].lerp_(high.clamp(min=0), MOMENTUM)
        low, high = self.low[index].clone(), self.high[index].clone()
        step = ((high - low) / LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
        zero = (-low / step).round().clamp(0, LEVELS).int()
        return torch.fake_quantize_per_tensor_affine(values, step, zero, 0, LEVELS).to(x.dtype)
