"""The views: how a subnet's tensor lies within the supernet's tensor of the same name.

A *rule* takes a shared tensor and the shape that a subnet wants, and returns the part of the tensor that the subnet
uses, differentiably. `rule_for` gives the rule of a layer by what the layer means; a family overrides it by name
where slicing by leading channels is not what the layer means. Forward and extraction both go through `take`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

# O output channels, I input channels (of a group), K kernel size

Rule = Callable[[Tensor, torch.Size], Tensor]
Index = tuple[slice, ...]


def leading(tensor: Tensor, shape: torch.Size) -> Tensor:
    """The first `shape[d]` entries along every dimension d; a view."""
    return tensor[_leading_index(tensor.shape, shape)]


def centred(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Leading channels and the centre of the kernel: of [O, I, K...] the middle K' along each K; a view."""
    return tensor[_centred_index(tensor.shape, shape)]


def _leading_index(whole: torch.Size, part: torch.Size) -> Index:
    return tuple(slice(size) for size in part)


def _centred_index(whole: torch.Size, part: torch.Size) -> Index:
    kernel = [slice((have - want) // 2, (have + want) // 2) for have, want in zip(whole[2:], part[2:])]
    return (*_leading_index(whole[:2], part[:2]), *kernel)


_INDICES = {leading: _leading_index, centred: _centred_index}  # the rules that are mere indexing


def blocks(count: int, rule: Rule = leading) -> Rule:
    """The rule for a tensor of `count` equal blocks along its first dimension, each sliced by `rule` on its own.

    A fused `qkv` weight is three such blocks; so are the groups of a convolution with a fixed number of them.
    """

    def slice_blocks(tensor: Tensor, shape: torch.Size) -> Tensor:
        part = torch.Size((shape[0] // count, *shape[1:]))
        return torch.cat([rule(block, part) for block in tensor.chunk(count)])

    return slice_blocks


def rule_for(module: nn.Module, tensor_name: str) -> Rule:
    """The rule for the tensor `tensor_name` of a layer like `module`: convolution kernels shrink about their centre,
    everything else keeps leading entries."""
    return centred if isinstance(module, _ConvNd) and tensor_name == "weight" else leading


def take(tensor: Tensor, shape: torch.Size, rule: Rule, accumulate: bool = False) -> Tensor:
    """The part of the shared `tensor` that a subnet's tensor of `shape` is.

    Weights of two and more dimensions come out dense, in the memory format of `tensor`: kernels for convolutions and
    matrices work on dense weights, and would otherwise make this copy themselves, once forward and once backward.
    A vector is a view, so that what a subnet writes to a BatchNorm buffer lands in the shared one.

    With `accumulate` the backward pass adds the gradient of the part to `tensor.grad` itself, where the rule is mere
    indexing. Autograd would make a gradient of the whole tensor, zero but for the part, and add that.
    """
    if tensor.shape == shape:
        return tensor
    if accumulate and tensor.requires_grad and tensor.is_leaf and rule in _INDICES:
        return _Accumulating.apply(tensor, _INDICES[rule](tensor.shape, shape))
    return _dense(rule(tensor, shape))


class _Accumulating(torch.autograd.Function):
    """A part of a leaf tensor, whose gradient goes straight into that of the whole."""

    @staticmethod
    def forward(ctx, tensor: Tensor, index: Index) -> Tensor:
        ctx.tensor, ctx.index = tensor, index
        return _dense(tensor[index])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, None]:
        if ctx.tensor.grad is None:
            ctx.tensor.grad = torch.zeros_like(ctx.tensor)
        ctx.tensor.grad[ctx.index].add_(gradient)
        return None, None


def _dense(part: Tensor) -> Tensor:
    return part.clone(memory_format=torch.preserve_format) if part.dim() > 1 else part
