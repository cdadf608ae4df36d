"""Weights of BERT, by the names that Hugging Face's `transformers` has for them, read into our encoder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from supernet.artifacts.weights import read_weights

# V vocabulary, D channels of the network

FILES = ("model.safetensors", "pytorch_model.bin")  # in a folder that `save_pretrained` wrote
HEAD_DIM = 64  # channels of an attention head, in BERT of every published size

_OUTSIDE = {
    "embeddings.word_embeddings": "embeddings.tokens",
    "embeddings.LayerNorm": "embeddings.norm",
    "pooler.dense": "pooler.0",
    "classifier": "head",
}
_INSIDE = {  # of a layer, but for queries, keys and values
    "attention.output.dense": "attn.proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "output.LayerNorm": "norm2",
}
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)")


def read_bert(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a BERT, by Hugging Face's names without the leading "bert.", in a file or in a folder that
    `save_pretrained` wrote; ValueError if they cannot be read, or are of another network."""
    weights = {_modern(name): tensor for name, tensor in read_folder(path).items()}
    for name in ("embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight"):
        if name not in weights:
            raise ValueError(f"{str(path)!r} is no BERT of Hugging Face's: it has no tensor {name!r}")
    return weights


def read_folder(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors in a file, or in that of weights in a folder."""
    place = Path(path)
    if place.is_dir():
        place = next((place / name for name in FILES if (place / name).is_file()), place / FILES[0])
    return read_weights(place)


def bert_options(path: str | os.PathLike) -> dict[str, Any]:
    """The options of `text_encoder` by which the BERT at `path` is the largest of a space of its halves and
    quarters."""
    weights = read_bert(path)
    hidden, dim = weights["encoder.layer.0.intermediate.dense.weight"].shape
    return {
        "vocabulary": weights["embeddings.word_embeddings.weight"].shape[0],
        "embed_dim": shares(dim),
        "depth": shares(1 + max(int(match[1]) for match in map(_LAYER.match, weights) if match)),
        "num_heads": shares(weights["encoder.layer.0.attention.self.query.weight"].shape[0] // HEAD_DIM),
        "mlp_ratio": [hidden / dim / 2, hidden / dim],
        "head_dim": HEAD_DIM,
        "pool": "first",
    }


def shares(largest: int) -> list[int]:
    """A half, three quarters and all of a size."""
    return sorted({max(largest // 2, 1), max(largest * 3 // 4, 1), largest})


def encoder_weights(weights: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """The tensors of our encoder for texts of up to `length` tokens that compute what the BERT of `weights`, as
    `read_bert` gives them, does for texts of one segment: the vector of its first segment is added to all positions.

    Heads of other tasks are left out. ValueError if the BERT knows fewer positions.
    """
    positions = weights["embeddings.position_embeddings.weight"]
    if length > len(positions):
        raise ValueError(f"a text of {length} tokens is longer than the {len(positions)} positions of this BERT")
    segment = weights["embeddings.token_type_embeddings.weight"][0]
    found = {"embeddings.positions": positions[:length] + segment}
    for name, tensor in weights.items():
        layer, _, kind = name.rpartition(".")
        match = _LAYER.fullmatch(layer)
        if layer in _OUTSIDE:
            found[f"{_OUTSIDE[layer]}.{kind}"] = tensor
        elif match and match[2] in _INSIDE:
            found[f"blocks.{match[1]}.{_INSIDE[match[2]]}.{kind}"] = tensor
        elif match and match[2] == "attention.self.query":
            parts = (f"encoder.layer.{match[1]}.attention.self.{part}.{kind}" for part in ("query", "key", "value"))
            found[f"blocks.{match[1]}.attn.qkv.{kind}"] = torch.cat([weights[part] for part in parts])
    return found


def _modern(name: str) -> str:
    name = name.removeprefix("bert.")
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda m: f"LayerNorm.{_NORM[m[1]]}", name)


_NORM = {"gamma": "weight", "beta": "bias"}  # as TensorFlow, and files from 2019, call them
