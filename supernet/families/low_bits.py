"""Layers that compute in few bits, with steps that are learned (LSQ: Esser et al., ICLR 2020, arXiv 1902.08153)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import Linear
from torch import Tensor, nn

# N numbers of bits that a layer may have

SPREAD = (2 / torch.pi) ** 0.5  # the mean absolute value of a normal variable of variance 1


def rounded(values: Tensor, step: Tensor, bits: int, count: int) -> Tensor:
    """The nearest multiple q s of `step` s [], with -2^(bits - 1) <= q <= 2^(bits - 1) - 1.

    The gradient of `values` is passed straight through where they are not cut off. That of the step is the paper's
    equation 3, round(v / s) - v / s within the ends and q at them, summed over the values and times the scale of its
    section 2.2, 1 / sqrt(`count` (2^(bits - 1) - 1)), `count` being the number of values that the step is for.
    """
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = (count * high) ** -0.5
    step = step.abs().clamp(min=torch.finfo(step.dtype).tiny)
    step = step.detach() + scale * (step - step.detach())
    multiples = (values / step).clamp(low, high)
    return (multiples + (multiples.round() - multiples).detach()) * step


def first_step(spread: Tensor, bits: int) -> Tensor:
    """What a step starts as for values of the mean absolute value `spread` (section 2.1): 2 <|v|> / sqrt(high)."""
    return 2 * spread / (2 ** (bits - 1) - 1) ** 0.5


class _LowBits:
    """What both kinds of layers have: weights and inputs are `rounded` by steps [N] of their own, one for each number
    of bits that the layer may have, so that subnets that have it in as many bits share the step."""

    options: tuple[int, ...]
    bits: int
    weight: Tensor
    weight_steps: Tensor
    input_steps: Tensor

    def _rounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        index = self.options.index(self.bits)
        weight = rounded(self.weight, self.weight_steps[index], self.bits, self.weight.numel())
        return rounded(x, self.input_steps[index], self.bits, x[0].numel()), weight


class LowBitsConv2d(_LowBits, nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        x, weight = self._rounded(x)
        return self._conv_forward(x, weight, self.bias)


class LowBitsLinear(_LowBits, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        x, weight = self._rounded(x)
        return nn.functional.linear(x, weight, self.bias)


KINDS: dict[type, type] = {nn.Conv2d: LowBitsConv2d, nn.Linear: LowBitsLinear, Linear: LowBitsLinear}


def roundable(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of `model` that can compute in few bits, by name: convolutions of images and linear layers as torch
    and timm have them, not what others derive from these."""
    return {name: layer for name, layer in model.named_modules() if type(layer) in KINDS}


def in_few_bits(layer: nn.Module, options: Sequence[int], bits: int) -> None:
    """Let `layer`, one of `roundable`, compute in `bits`, one of its `options`, in place; its tensors keep their names.

    A weight's steps start from the weight, those of the input as for normal values of variance 1, as BatchNorm gives.
    """
    spread = layer.weight.detach().abs().mean()
    layer.__class__ = KINDS[type(layer)]
    layer.options, layer.bits = tuple(options), bits
    layer.weight_steps = nn.Parameter(torch.stack([first_step(spread, own) for own in options]))
    layer.input_steps = nn.Parameter(torch.stack([first_step(torch.full_like(spread, SPREAD), o) for o in options]))
