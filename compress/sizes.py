"""How many bytes a network takes that is not compressed, and what it would take that is."""

from __future__ import annotations

import gzip
import math
import tempfile
from pathlib import Path

import safetensors.torch
import torch

from compress.quantisation import export_int8, quantise
from supernet.artifacts.subnet import Subnet
from supernet.views import tied_names


def uncompressed_bytes(subnet: Subnet, *, onnx: bool = True) -> dict[str, int]:
    """Bytes of `subnet` as files, by name: safetensors in float32 and float16, the former under gzip, and, with `onnx`,
    ONNX in int8.

    The int8 file's ranges are those of noise, which its size does not depend on.
    """
    model, config = subnet
    ties = tied_names(model.state_dict(keep_vars=True))
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in ties}
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    plain = safetensors.torch.save(state)
    sizes = {
        "float32": len(plain),
        "float16": len(safetensors.torch.save(half)),
        "float32, gzip": len(gzip.compress(plain, mtime=0)),
    }
    if onnx:
        with tempfile.TemporaryDirectory() as name:
            path, example = Path(name, "model.int8.onnx"), config.example()
            noise = tuple(torch.rand(4, *own.shape[1:]).to(own.dtype) for own in example)
            network = quantise(model, [noise], "extremes", rounding="nearest")
            export_int8(network, path, example, names=config, dynamic_batch=True)
            sizes["int8, ONNX"] = path.stat().st_size
    return sizes


def expected_bytes(weights: int, density: float = 1.0, bits: int = 5) -> float:
    """What the coded weights take at most, about: n (H(density) + density bits) / 8, H the entropy in bits of whether a
    weight is 0. Tables, what is no weight, and the header come on top; values that are not equally frequent take less.
    """
    entropy = -sum(part * math.log2(part) for part in (density, 1 - density) if part > 0)
    return weights * (entropy + density * bits) / 8
