"""Weights of GPT-2, by the names that Hugging Face's `transformers` has for them, read into our decoder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from supernet.families.text.bert import HEAD_DIM, read_folder, shares

_OUTSIDE = {"wte.weight": "embeddings.tokens.weight", "wpe.weight": "embeddings.positions"}
_INSIDE = {
    "attn.c_attn": "attn.qkv",
    "attn.c_proj": "attn.proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_1": "norm1",
    "ln_2": "norm2",
}
_LAYER = re.compile(r"h\.(\d+)\.(.+)\.(weight|bias)")


def read_gpt2(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a GPT-2, by Hugging Face's names without the leading "transformer.", in a file or in a folder that
    `save_pretrained` wrote; ValueError if they cannot be read, or are of another network."""
    weights = {name.removeprefix("transformer."): tensor for name, tensor in read_folder(path).items()}
    for name in ("wte.weight", "h.0.attn.c_attn.weight"):
        if name not in weights:
            raise ValueError(f"{str(path)!r} is no GPT-2 of Hugging Face's: it has no tensor {name!r}")
    return weights


def gpt2_options(path: str | os.PathLike) -> dict[str, Any]:
    """The options of `text_decoder` by which the GPT-2 at `path` is the largest of a space of its halves and
    quarters."""
    weights = read_gpt2(path)
    dim, hidden = weights["h.0.mlp.c_fc.weight"].shape
    return {
        "vocabulary": weights["wte.weight"].shape[0],
        "embed_dim": shares(dim),
        "depth": shares(1 + max(int(match[1]) for match in map(_LAYER.fullmatch, weights) if match)),
        "num_heads": shares(weights["h.0.attn.c_proj.weight"].shape[0] // HEAD_DIM),
        "mlp_ratio": [hidden / dim / 2, hidden / dim],
        "head_dim": HEAD_DIM,
    }


def decoder_weights(weights: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """The tensors of our decoder for texts of up to `length` tokens that compute what the GPT-2 of `weights`, as
    `read_gpt2` gives them, does. Its matrices are [inputs, outputs]. ValueError if it knows fewer positions."""
    if length > len(weights["wpe.weight"]):
        raise ValueError(f"a text of {length} tokens is longer than the {len(weights['wpe.weight'])} of this GPT-2")
    found = {ours: weights[name] for name, ours in _OUTSIDE.items()}
    found["embeddings.positions"] = found["embeddings.positions"][:length]
    found |= {f"norm.{kind}": weights[f"ln_f.{kind}"] for kind in ("weight", "bias")}
    for name, tensor in weights.items():
        match = _LAYER.fullmatch(name)
        if match and match[2] in _INSIDE:
            found[f"blocks.{match[1]}.{_INSIDE[match[2]]}.{match[3]}"] = tensor.T if tensor.dim() == 2 else tensor
    return found
