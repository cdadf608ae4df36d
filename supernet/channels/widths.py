"""Models with fewer or more channels, made of one whose channels are known."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from supernet.channels.tracer import Channels
from supernet.slicing import Rule, leading
from supernet.views import tie_names, tied_names

BlockCounts = tuple[int, ...]  # of every dimension of a tensor, how many equal blocks it consists of


def narrow(model: nn.Module, sizes: Mapping[Channels, int]) -> nn.Module:
    """Keep the leading `sizes[channels]` of each of these channels, in place; returns `model`.

    The layers' own numbers (`in_channels`, `num_features`, ...) follow. Tensors that `model` lacks are left out.
    """
    return _resize(model, sizes, lambda tensor, shape, blocks: leading_of_blocks(tensor, shape, blocks).clone())


def widen(model: nn.Module, sizes: Mapping[Channels, int]) -> nn.Module:
    """Make each of these channels `sizes[channels]` in number, none fewer, in place; returns `model`.

    The leading ones keep their weights. The others are drawn by torch's global generator from the normal distribution
    with the mean and standard deviation of the tensor, so that scales of 1 and biases of 0 stay what they are. The
    layers' own numbers follow, as in `narrow`.
    """
    return _resize(model, sizes, _extended)


def slicing_rules(channels: Iterable[Channels]) -> dict[str, Rule]:
    """The rules that `Supernet` needs, by name, for the tensors of channels that lie in several blocks somewhere.

    Also for a tensor in which such channels are one block, such as the weight of a convolution in groups, each of which
    takes in a block: without a rule, its smaller groups would be taken to see the channels of other groups.
    """
    rules = {}
    for name, blocks in _blocks_by_tensor(group for group in channels if not group.plain).items():
        whole = tuple(blocks.get(dim, 1) for dim in range(max(blocks) + 1))
        rules[glob.escape(name)] = partial(leading_of_blocks, blocks=whole)
    return rules


def leading_of_blocks(tensor: Tensor, shape: torch.Size, blocks: BlockCounts) -> Tensor:
    """The leading entries of each of `blocks[d]` equal blocks along every dimension d, of `shape` in all; dimensions
    beyond `blocks` are one block."""
    part = tensor
    for dim, count in enumerate(blocks):
        if count > 1 and shape[dim] < tensor.shape[dim]:
            part = part.unflatten(dim, (count, -1)).narrow(dim + 1, 0, shape[dim] // count).flatten(dim, dim + 1)
    return leading(part, shape)


def _extended(tensor: Tensor, shape: torch.Size, blocks: BlockCounts) -> Tensor:
    if tensor.is_meta:
        return tensor.new_empty(shape)
    whole = nn.Parameter(tensor.new_empty(shape), requires_grad=False)
    values = tensor.float()
    whole.normal_(values.mean().item(), values.std(correction=0).item())
    indices = []
    for have, want, count in itertools.zip_longest(tensor.shape, shape, blocks, fillvalue=1):
        indices.append(torch.arange(want).unflatten(0, (count, -1))[:, : have // count].flatten())
    whole.detach()[torch.meshgrid(*indices, indexing="ij")] = tensor
    return whole.detach()


def _blocks_by_tensor(channels: Iterable[Channels]) -> dict[str, dict[int, int]]:
    found: dict[str, dict[int, int]] = {}
    for group in channels:
        for name, dim, blocks in group.members:
            found.setdefault(name, {})[dim] = blocks
    return found


def _resize(
    model: nn.Module, sizes: Mapping[Channels, int], change: Callable[[Tensor, torch.Size, BlockCounts], Tensor]
) -> nn.Module:
    """Give the tensors of `model` that these channels are in new sizes, by `change`, in place."""
    present = {name for name, _ in itertools.chain(model.named_parameters(), model.named_buffers())}
    blocks_of = _blocks_by_tensor(sizes)
    factors: dict[str, dict[int, tuple[int, int]]] = {}
    for group, size in sizes.items():
        for name, dim, _ in group.members:
            if name in present:
                factors.setdefault(name, {})[dim] = (size, group.size)
    ties = tied_names(model.state_dict(keep_vars=True))
    for name, factor_of in factors.items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        tensor = getattr(module, leaf)
        shape = list(tensor.shape)
        for dim, (size, whole) in factor_of.items():
            shape[dim] = shape[dim] // whole * size
        blocks = tuple(blocks_of[name].get(dim, 1) for dim in range(tensor.dim()))
        part = change(tensor.detach(), torch.Size(shape), blocks)
        setattr(module, leaf, nn.Parameter(part, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else part)
        if leaf == "weight":
            _set_numbers(module, torch.Size(shape))
        seen_as = getattr(module, "shape", None)  # of a vector by which timm's metaformers scale channels
        if tensor.dim() == 1 and isinstance(seen_as, tuple) and seen_as[:1] == tensor.shape:
            module.shape = (shape[0], *seen_as[1:])
    tie_names(model, ties)
    for alias in ties:
        owner, _, leaf = alias.rpartition(".")
        if leaf == "weight":
            module = model.get_submodule(owner)
            _set_numbers(module, module.weight.shape)
    return model


def _set_numbers(module: nn.Module, shape: torch.Size) -> None:
    """Set what a layer says of its sizes to those of its weight."""
    if isinstance(module, _ConvNd):
        outputs, inputs = shape[:2]
        if isinstance(module, _ConvTransposeNd):
            inputs, outputs = shape[0], shape[1] * module.groups
        elif module.groups == module.in_channels > 1:  # depthwise, perhaps with several outputs for each input
            module.groups = inputs = outputs * module.in_channels // module.out_channels
        else:
            inputs *= module.groups
        module.out_channels, module.in_channels = outputs, inputs
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = shape
    elif isinstance(module, _NormBase):
        module.num_features = shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = shape[0]
    elif hasattr(module, "normalized_shape"):
        module.normalized_shape = tuple(shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = shape[0]
