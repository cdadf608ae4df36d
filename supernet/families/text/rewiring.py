"""Which heads, neurons and embedding channels a text encoder or decoder has, and those that matter most first.

DynaBERT (Hou et al., NeurIPS 2020, arXiv 2004.04037, section 2.1) rewires a BERT so that narrower subnets keep its most
important heads and neurons. Here embedding channels are ordered as well.
"""

from __future__ import annotations

import re

from torch import nn

from supernet.channels import Channels, Member
from supernet.families.vision_transformer.rewiring import block_channels

_TABLES = {
    "embeddings.tokens.weight": 1,
    "embeddings.positions": 1,
    "embeddings.norm.weight": 0,
    "embeddings.norm.bias": 0,
}
_PROJECTION = {"embeddings.projection.weight": 0, "embeddings.projection.bias": 0}
_NETWORK = {"norm.weight": 0, "norm.bias": 0}
_BLOCK = {
    "norm1.weight": 0,
    "norm1.bias": 0,
    "attn.qkv.weight": 1,
    "attn.proj.weight": 0,
    "attn.proj.bias": 0,
    "norm2.weight": 0,
    "norm2.bias": 0,
    "mlp.fc1.weight": 1,
    "mlp.fc2.weight": 0,
    "mlp.fc2.bias": 0,
}
_EMBEDDERS = ("attn.proj.weight", "mlp.fc2.weight")


def text_channels(model: nn.Module) -> list[Channels]:
    """The embedding channels of a network of `text_encoder` or `text_decoder`, "embed_dim", what its pooler gives,
    "pooler", if it has one, and of each block heads and neurons; ValueError as
    `supernet.families.vision_transformer.rewiring.block_channels`."""
    tensors = {name: parameter.dim() for name, parameter in model.named_parameters()}  # tied ones once
    has_projection = "embeddings.projection.weight" in tensors
    outside = (_PROJECTION if has_projection else _TABLES) | _NETWORK
    read = "pooler.0.weight" if "pooler.0.weight" in tensors else "head.weight"
    embedding = [Member(name, dim, 1) for name, dim in (outside | {read: 1}).items() if name in tensors]
    embedding += [Member(name, _BLOCK[_within(name)], 1) for name in tensors if _within(name) in _BLOCK]
    found = [
        Channels(
            "embed_dim",
            model.head.in_features,
            tuple(embedding),
            tuple(name for name in tensors if _within(name) in _EMBEDDERS),
            (),
        )
    ]
    if read != "head.weight":
        members = (Member("pooler.0.weight", 0, 1), Member("pooler.0.bias", 0, 1), Member("head.weight", 1, 1))
        found.append(Channels("pooler", model.head.in_features, members, ("pooler.0.weight",), ()))
    return found + block_channels(model, tensors)


def _within(name: str) -> str:
    """The name of a tensor in its block; of one in none, nothing."""
    return re.sub(r"^blocks\.\d+\.", "", name) if name.startswith("blocks.") else ""
