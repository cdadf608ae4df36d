"""Which heads, neurons and embedding channels a vision transformer has, and those that matter most first.

DynaBERT (Hou et al., NeurIPS 2020, arXiv 2004.04037, section 2.1) rewires a pretrained transformer so that narrower
subnets keep its most important heads and neurons. Here embedding channels are ordered as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable

from torch import Tensor, nn

from supernet.channels import Channels, Member
from supernet.channels.importance import Batch, order_channels, taylor_scores
from supernet.supernet import Supernet

_EMBEDDING = {  # dimension of tensors of the network, and of one of its blocks
    "cls_token": 2,
    "reg_token": 2,
    "pos_embed": 2,
    "patch_embed.proj.weight": 0,
    "patch_embed.proj.bias": 0,
    "norm_pre.weight": 0,
    "norm_pre.bias": 0,
    "norm1.weight": 0,
    "norm1.bias": 0,
    "attn.qkv.weight": 1,
    "attn.proj.weight": 0,
    "attn.proj.bias": 0,
    "ls1.gamma": 0,
    "norm2.weight": 0,
    "norm2.bias": 0,
    "mlp.fc1.weight": 1,
    "mlp.fc2.weight": 0,
    "mlp.fc2.bias": 0,
    "ls2.gamma": 0,
    "norm.weight": 0,
    "norm.bias": 0,
    "fc_norm.weight": 0,
    "fc_norm.bias": 0,
    "head.weight": 1,
}
_HEADS = {  # dimension and equal blocks in it
    "attn.qkv.weight": (0, 3),
    "attn.qkv.bias": (0, 3),
    "attn.norm.weight": (0, 1),
    "attn.norm.bias": (0, 1),
    "attn.proj.weight": (1, 1),
}
_NEURONS = {
    "mlp.fc1.weight": (0, 1),
    "mlp.fc1.bias": (0, 1),
    "mlp.norm.weight": (0, 1),
    "mlp.norm.bias": (0, 1),
    "mlp.fc2.weight": (1, 1),
}
_EMBEDDERS = ("patch_embed.proj.weight", "attn.proj.weight", "mlp.fc2.weight")


def transformer_channels(model: nn.Module) -> list[Channels]:
    """The embedding channels of a `timm.models.vision_transformer.VisionTransformer`, under the name "embed_dim", and
    of each block its heads, "blocks.3.num_heads", and its neurons, "blocks.3.mlp_ratio"; ValueError as
    `block_channels`."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    embedding = [(name, _within(name)) for name in shapes if _within(name) in _EMBEDDING]
    found = [
        Channels(
            "embed_dim",
            model.embed_dim,
            tuple(Member(name, _EMBEDDING[inside]) for name, inside in embedding),
            tuple(name for name, inside in embedding if inside in _EMBEDDERS),
            (),
        )
    ]
    return found + block_channels(model, shapes)


def block_channels(model: nn.Module, tensors: Collection[str]) -> list[Channels]:
    """Of each of the `blocks` of a transformer its heads, "blocks.3.num_heads", and its neurons, "blocks.3.mlp_ratio",
    where they lie in `tensors`, by the names that timm has for what is in a block.

    ValueError where a block mixes tokens otherwise than by attention of its own, whose channels are not known.
    """
    mixers = [getattr(block, "mixer", "own") for block in model.blocks]
    if odd := [mixer for mixer in mixers if mixer != "own"]:
        raise ValueError(f"channels are known of blocks with attention of their own alone, not {odd[0]!r}")
    found = []
    for index, block in enumerate(model.blocks):
        prefix = f"blocks.{index}."
        for kind, places, size, first, each in (
            ("num_heads", _HEADS, block.attn.num_heads, "attn.qkv.weight", block.attn.head_dim),
            ("mlp_ratio", _NEURONS, block.mlp.fc1.out_features, "mlp.fc1.weight", 1),
        ):
            members = tuple(Member(prefix + name, *where) for name, where in places.items() if prefix + name in tensors)
            found.append(Channels(prefix + kind, size, members, (prefix + first,), (), each))
    return found


def _within(name: str) -> str:
    return re.sub(r"^blocks\.\d+\.", "", name)


def rewire(
    net: Supernet,
    batches: Iterable[Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    channels_of: Callable[[nn.Module], list[Channels]] = transformer_channels,
) -> Supernet:
    """Order the heads, neurons and embedding channels of a supernet of the family `vit`, in place, by what the loss of
    its largest subnet on `batches` would lose without them (`supernet.channels.importance.taylor_scores`); returns
    `net`, whose largest subnet computes what it did.

    `loss(model, batch)` is a scalar. It is done before training, since narrower subnets that were trained compute
    something else afterwards. For another family `channels_of` says which channels its largest subnet has, such as
    `supernet.families.text.rewiring.text_channels`.
    """
    largest = net.extract(net.space.largest).eval()
    channels = channels_of(largest)
    return order_channels(net, channels, taylor_scores(largest, channels, batches, loss))
