"""Rounding weights so that those of a layer make up for each other's errors, on what goes into it.

The weights of a layer are rounded one after the other, and what that changes in the layer's output, in squares over
calibration examples, is made up for as well as may be by those not rounded yet and by the bias: GPTQ (Frantar et al.,
ICLR 2023, arXiv 2210.17323, algorithm 1). With H = X X^T of the inputs X of an output, H^-1 = U^T U with U upper
triangular, and q_j the rounded weight j,

    w_k  <-  w_k - (w_j - q_j) U_jk / U_jj      for all k > j.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.quantisation.points import Observing, layers
from distill.untouched import untouched
from supernet.calibration import Inputs, as_arguments
from supernet.training.data.batch import take

# N examples, G groups, O output channels of a group, I inputs of an output, P positions of all examples

EXAMPLES = 64  # that a layer's inputs are from; twice as many made no difference
DAMPING = 0.01  # of the mean of H's diagonal is added to it, as published
MOST_INPUTS = 8192  # of an output; a layer with more has a large H, and is rounded to the nearest
BLOCK = 128  # weights
AT_ONCE = 2**24  # numbers


def compensated(model: nn.Module, batches: Sequence[Inputs], bits: int = 8) -> dict[str, Tensor]:
    """The weights of the layers of `model`, in eval mode, rounded to `bits` bits, and the biases to them, by name.

    The first EXAMPLES of `batches` say what goes into a layer. Values are multiples of a step of each output channel
    as by `compress.transforms.Bits`: its largest weight is 2^(bits - 1) - 1 of them. Layers that no example meets,
    convolutions of three dimensions or padded by a word, and layers of more than MOST_INPUTS are left out.
    """
    found: dict[str, Tensor] = {}
    for name, moments in second_moments(model, batches).items():
        layer = model.get_submodule(name)
        weight, shift = rounded(layer.weight.detach(), moments, bits, layer.bias is not None)
        found[f"{name}.weight"] = weight
        if layer.bias is not None:
            found[f"{name}.bias"] = layer.bias.detach() + shift
    return found


def rounded(weight: Tensor, moments: Tensor, bits: int, has_bias: bool) -> tuple[Tensor, Tensor]:
    """A weight [G O, ...] after rounding, and what is to be added to the bias [G O], 0 without one.

    `moments` [G, I + 1, I + 1] are sums of x x^T over the inputs x of a group, behind which a 1 stands for the bias.
    """
    groups, inputs = moments.shape[0], weight[0].numel()
    left = F.pad(weight.double().reshape(groups, -1, inputs), (0, 1))  # [G, O, I + 1]
    highest = 2 ** (bits - 1) - 1
    largest, place = left.abs().max(2, keepdim=True)
    steps = torch.where(largest > 0, largest, 1.0) / highest
    free = inputs + has_bias
    upper = _inverse_factor(moments[:, :free, :free])
    for start in range(0, inputs, BLOCK):  # later blocks hear of a block's errors together: the published lazy updates
        end = min(start + BLOCK, inputs)
        errors = torch.zeros_like(left[..., start:end])
        for j in range(start, end):
            own = left[..., j : j + 1].clone()
            integers = torch.where(place == j, own.sign() * highest, (own / steps).round().clamp(-highest, highest))
            error = errors[..., j - start : j - start + 1] = (own - integers * steps) / upper[:, j, j, None, None]
            left[..., j:end] -= error * upper[:, None, j, j:end]
            left[..., j : j + 1] = integers * steps
        left[..., end:free] -= errors @ upper[:, start:end, end:]
    return left[..., :inputs].reshape(weight.shape).to(weight.dtype), left[..., inputs].flatten().to(weight.dtype)


def _inverse_factor(moments: Tensor) -> Tensor:
    """U, upper triangular, with U^T U the inverse of the damped `moments` [G, n, n]."""
    diagonal = moments.diagonal(dim1=1, dim2=2)
    damping = DAMPING * diagonal.mean(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    damped = moments + torch.diag_embed(damping.expand_as(diagonal))
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)


@torch.no_grad()
def second_moments(model: nn.Module, batches: Sequence[Inputs]) -> dict[str, Tensor]:
    """By the name of a layer the sums [G, I + 1, I + 1], over the first EXAMPLES, of x x^T, as `patches` gives x."""
    known = {name: layer for name, layer in layers(model).items() if _has_patches(layer)}
    sums: dict[str, Tensor] = {}

    def add(point: str, x: Tensor) -> None:
        name, _, end = point.rpartition(".")
        if end == "input":
            patch = known[name].weight[0, 0].numel()
            for part in x.split(max(1, AT_ONCE // (x[0].numel() * patch))):
                own = patches(known[name], part)
                sums[name] = sums.get(name, 0) + (own @ own.transpose(1, 2)).double()

    weights = {id(layer.weight): name for name, layer in known.items()}
    for batch in take(batches, EXAMPLES):
        with Observing(weights, add):
            untouched(model, *as_arguments(batch))
    return sums


def patches(layer: nn.Module, x: Tensor) -> Tensor:
    """What goes into each output of `layer`, with a 1 behind it: [G, I + 1, P] of the layer's input x."""
    if isinstance(layer, nn.Linear):
        own = x.reshape(-1, x.shape[-1]).T[None]
    else:
        wide = (1,) * (4 - x.dim())  # a convolution of one dimension is one of height 1
        padding = layer.padding if layer.padding_mode == "zeros" else (0,) * len(layer.padding)  # or done before
        unfolded = F.unfold(
            x.unflatten(1, (-1, *wide)) if wide else x,
            (*wide, *layer.kernel_size),
            (*wide, *layer.dilation),
            (*(0 for _ in wide), *padding),
            (*wide, *layer.stride),
        )  # [N, G I, P / N]
        own = unfolded.unflatten(1, (layer.groups, -1)).permute(1, 2, 0, 3).flatten(2)
    return torch.cat([own, torch.ones_like(own[:, :1])], 1)


def _has_patches(layer: nn.Module) -> bool:
    is_left_out = isinstance(layer, nn.Conv3d) or isinstance(getattr(layer, "padding", None), str)
    return not is_left_out and layer.weight[0].numel() <= MOST_INPUTS
