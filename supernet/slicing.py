"""The slices: how a subnet's tensor lies within the supernet's tensor.

A *rule* takes a shared tensor and the shape that a subnet wants, and returns the part of the tensor that the subnet
uses, differentiably. `layer_rule` gives the rule of a layer by what the layer means; a family overrides it by name
where that cannot be seen from the layer. Extraction goes through `take`, and so does a forward pass, but for rules of
mere `indexing`, by which `supernet.subnets` cuts the same part in fewer operators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from timm.layers import Attention, AttentionRope
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from supernet.views import Transform

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
    return tuple(slice(0, size) for size in part)


def _centred_index(whole: torch.Size, part: torch.Size) -> Index:
    kernel = [slice((have - want) // 2, (have + want) // 2) for have, want in zip(whole[2:], part[2:])]
    return (*_leading_index(whole[:2], part[:2]), *kernel)


_INDICES = {leading: _leading_index, centred: _centred_index}  # the rules that are mere indexing


@dataclass(frozen=True)
class Blocks:
    """The rule that `blocks` describes."""

    count: int
    rule: Rule = leading
    dim: int = 0

    def __call__(self, tensor: Tensor, shape: torch.Size) -> Tensor:
        part = torch.Size(size // self.count if dim == self.dim else size for dim, size in enumerate(shape))
        return torch.cat([self.rule(block, part) for block in tensor.chunk(self.count, self.dim)], self.dim)


def blocks(count: int, rule: Rule = leading, dim: int = 0) -> Rule:
    """The rule for a tensor of `count` equal blocks along its dimension `dim`, each sliced by `rule` on its own.

    A fused `qkv` weight is three such blocks of rows; so are the two halves of a gated layer. What comes after a
    concatenation of equal parts has blocks of columns, `dim=1`.
    """
    return Blocks(count, rule, dim)


def resized_dims(rule: Rule) -> tuple[int, ...]:
    """The dimensions along which `rule` resizes a tensor, to sizes that may be larger than the shared one's: those of
    its attribute `resizes`, if it has one; none of a rule that takes a part."""
    return getattr(rule, "resizes", ())


_GATES = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}  # blocks of rows of their weights and biases


def layer_rule(module: nn.Module, name: str) -> Rule:
    """The rule for the tensor `name` of the plain `module`.

    Convolution kernels shrink about their centre. Of a fused query-key-value weight (`nn.MultiheadAttention`, timm's
    `Attention`) each of the three blocks of rows keeps its leading heads. Recurrent layers and cells keep the leading
    states of every gate, and, where their inputs come from both directions, the leading ones of each. Everything else
    keeps leading entries. What that means for groups and heads, see `unit`.
    """
    layer, tensor_name = layer_of(module, name)
    if isinstance(layer, _ConvNd) and tensor_name == "weight":
        return centred
    if tensor_name in ("in_proj_weight", "in_proj_bias") or _fused_attention(module, name):
        return blocks(3)
    if tensor_name.startswith("weight_hr"):  # the projection of an LSTM's output
        return leading
    gates = next((gates for kind, gates in _GATES.items() if isinstance(layer, kind)), 1)
    inner = tensor_name.startswith("weight_ih_l") and not tensor_name.startswith("weight_ih_l0")
    columns = blocks(2, dim=1) if inner and layer.bidirectional else leading
    return columns if gates == 1 else blocks(gates, columns)


class Unit(NamedTuple):
    """What the rows of a layer come in: attention heads, or groups of a convolution."""

    kind: str
    count: int
    size: tuple[int, ...]  # channels of a head; outputs and inputs of a group


def unit(module: nn.Module, name: str) -> Unit | None:
    """The heads or groups of the layer that the tensor `name` of `module` belongs to, None for other layers.

    Where there are several, a smaller layer has fewer of them, each as large as before: its leading rows are then the
    leading heads or groups. Smaller heads would be pieces of larger ones, and smaller groups would see the channels of
    others.
    """
    layer, _ = layer_of(module, name)
    attention = layer if isinstance(layer, nn.MultiheadAttention) else _fused_attention(module, name)
    if attention is not None:
        return Unit("head", attention.num_heads, (attention.head_dim,))
    if isinstance(layer, _ConvNd):
        return Unit("group", layer.groups, (layer.out_channels // layer.groups, layer.in_channels // layer.groups))
    return None


def layer_of(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The layer that the tensor `name` of `module` belongs to, and what it is there: for tensors of a parametrisation
    (`torch.nn.utils.parametrizations`, or the older `weight_norm` and `spectral_norm`) the one that it makes."""
    *path, tensor_name = name.split(".")
    if "parametrizations" in path:
        at = path.index("parametrizations")
        return module.get_submodule(".".join(path[:at])), path[at + 1]
    layer = module.get_submodule(".".join(path))
    return layer, "weight" if isinstance(layer, _ConvNd) and tensor_name != "bias" else tensor_name


def _fused_attention(module: nn.Module, name: str) -> Attention | AttentionRope | None:
    """timm's attention, if the tensor `name` is of the layer that gives its queries, keys and values."""
    *path, layer_name, _ = ["", *name.split(".")]
    parent = module.get_submodule(".".join(path).removeprefix(".")) if layer_name == "qkv" else None
    return parent if isinstance(parent, Attention | AttentionRope) else None


def take(tensor: Tensor, shape: torch.Size, rule: Rule, transform: Transform | None = None) -> Tensor:
    """The part of the shared `tensor` that a subnet's tensor of `shape` is, and what `transform` makes of it.

    Weights of two and more dimensions come out dense, in the memory format of `tensor`: kernels for convolutions and
    matrices work on dense weights, and would otherwise make this copy themselves, once forward and once backward.
    A vector is a view, so that what a subnet writes to a BatchNorm buffer lands in the shared one; unless its entries
    do not lie side by side, since kernels round in another order where they step over entries.
    """
    part = tensor if tensor.shape == shape else dense(rule(tensor, shape))
    return part if transform is None else transform(part)


def indexing(rule: Rule, whole: torch.Size, part: torch.Size) -> Index | None:
    """Where in a tensor of the shape `whole` the part of the shape `part` lies by a rule that is mere indexing; None by
    another."""
    if isinstance(rule, Blocks) and rule.rule is leading and whole[rule.dim] == part[rule.dim]:
        rule = leading  # of blocks that stay whole
    return _INDICES[rule](whole, part) if rule in _INDICES else None


def dense(part: Tensor) -> Tensor:
    """`part` as `take` gives it."""
    return part.clone(memory_format=torch.preserve_format) if part.dim() > 1 else part.contiguous()
