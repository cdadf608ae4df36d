"""A quantised network as ONNX in QDQ form: pairs of QuantizeLinear and DequantizeLinear say what is in 8 bits."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from compress.quantisation.network import Quantised
from supernet.artifacts.atomic import write_atomically
from supernet.artifacts.export import CLASSIFICATION, Named, export_onnx
from supernet.imports import require

# O output channels of a weight


def export_int8(
    network: Quantised,
    path: str | Path,
    example: Sequence[int] | tuple[Tensor, ...] = (3, 224, 224),
    *,
    names: Named | None = CLASSIFICATION,
    batch_size: int = 1,
    dynamic_batch: bool = False,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write `network` to `path` as `supernet.artifacts.export.export_onnx` does a plain one, its weights as integers,
    those that several layers share once.

    Activations are unsigned with a zero point, weights signed with a step a channel, biases 32 bits where the layer
    computes in int8. Raises as `export_onnx` does.
    """
    onnx = require("onnx")
    with tempfile.TemporaryDirectory() as folder, write_atomically(path) as temporary:
        plain = Path(folder, "model.onnx")
        export_onnx(
            network,
            plain,
            example,
            names=names,
            batch_size=batch_size,
            dynamic_batch=dynamic_batch,
            metadata=metadata,
        )
        model = onnx.load(str(plain))
        pack_weights(model.graph, network.quantisation.weight_bits)
        onnx.checker.check_model(model)
        onnx.save(model, str(temporary))


def pack_weights(graph: Any, bits: int) -> None:
    """Keep each weight of `graph`, an ONNX graph, in int8 if its values are multiples of a step in each output channel,
    the largest of them 2^(`bits` - 1) - 1 times that: the same values, in a quarter of the bytes.

    Biases of layers whose input is quantised become 32-bit multiples of the product of both steps, as runtimes want.
    """
    to_array = require("onnx").numpy_helper.to_array
    _take_sizes_from_quantised(graph)
    _without_names_for_weights(graph)
    weights = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    constants = weights | {n.output[0]: to_array(n.attribute[0].t) for n in graph.node if n.op_type == "Constant"}
    makers = {output: node for node in graph.node for output in node.output}
    for node in list(graph.node):
        axis = _output_axis(node)
        if axis is None or node.input[1] not in weights or weights[node.input[1]].ndim < 2:
            continue
        channels = np.moveaxis(weights[node.input[1]], axis, 0)
        steps = _steps(channels, bits)
        if steps is None:
            continue
        maker = makers.get(node.input[0])
        bias = weights.get(node.input[2]) if len(node.input) > 2 else None
        if bias is not None and maker is not None and maker.op_type == "DequantizeLinear":
            of_input = float(constants[maker.input[1]])
            # the bias of a channel of weights near 0 may be more than 2^31 of its steps
            steps = np.maximum(steps, np.abs(bias) / of_input / 2**30)
            of_bias = (steps * of_input).astype(np.float32)
            integers = np.round(bias / of_bias.astype(np.float64)).astype(np.int32)
            node.input[2] = _dequantised(graph, f"{node.name}/bias", _Integers(integers, of_bias, 0))
        integers = np.round(channels / steps.reshape(-1, *[1] * (channels.ndim - 1))).astype(np.int8)
        integers = np.ascontiguousarray(np.moveaxis(integers, 0, axis))
        node.input[1] = _dequantised(graph, f"{node.name}/weight", _Integers(integers, steps.astype(np.float32), axis))
    _store_once(graph)
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _without_names_for_weights(graph: Any) -> None:
    """Let layers take their weights themselves, and not under further names, as torch's exporter has those that layers
    share."""
    weights = {tensor.name for tensor in graph.initializer}
    further = [node for node in graph.node if node.op_type == "Identity" and node.input[0] in weights]
    names = {node.output[0]: node.input[0] for node in further}
    for node in further:
        graph.node.remove(node)
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)


def _store_once(graph: Any) -> None:
    """Let weights of equal values be one tensor, as those of layers that share them."""
    to_array = require("onnx").numpy_helper.to_array
    first: dict[tuple, str] = {}
    arrays = {tensor.name: to_array(tensor) for tensor in graph.initializer if len(tensor.dims) > 1}
    names = {
        name: first.setdefault((array.dtype, array.shape, array.tobytes()), name) for name, array in arrays.items()
    }
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)


class _Integers(NamedTuple):
    values: np.ndarray
    steps: np.ndarray  # [O]
    axis: int  # of the output channels


def _dequantised(graph: Any, name: str, integers: _Integers) -> str:
    """The name of a tensor in float that a new node makes of integers."""
    onnx = require("onnx")
    parts = {f"{name}/integers": integers.values, f"{name}/steps": integers.steps}
    if integers.values.dtype == np.int8:  # linear layers run in int8 only if their weights' zero points are said
        parts[f"{name}/zeros"] = np.zeros(len(integers.steps), np.int8)
    graph.initializer.extend(onnx.numpy_helper.from_array(array, part) for part, array in parts.items())
    node = onnx.helper.make_node("DequantizeLinear", list(parts), [name], f"{name}/dequantise", axis=integers.axis)
    graph.node.insert(0, node)
    return name


def _output_axis(node: Any) -> int | None:
    """The dimension of the output channels in a layer's weight; None for what is no layer."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "MatMul":
        return 1
    if node.op_type != "Gemm":
        return None
    values = {own.name: require("onnx").helper.get_attribute_value(own) for own in node.attribute}
    is_plain = values.get("alpha", 1) == values.get("beta", 1) == 1
    return (0 if values.get("transB") else 1) if is_plain else None


def _steps(channels: np.ndarray, bits: int) -> np.ndarray | None:
    """The step of each output channel [O] of `channels` [O, ...], in double precision; None if some values are no
    multiples of it."""
    flat = channels.reshape(len(channels), -1).astype(np.float64)
    largest = np.abs(flat).max(1)
    steps = np.where(largest > 0, largest, 1.0) / (2 ** (bits - 1) - 1)
    multiples = flat / steps[:, None]
    return steps if np.abs(multiples - np.round(multiples)).max() < 1e-3 else None


def _take_sizes_from_quantised(graph: Any) -> None:
    """Ask what was quantised for its size, not what was not: runtimes compute a layer in int8 only if nothing else
    wants its output in float."""
    nodes = sorted(graph.node, key=lambda node: node.op_type != "Constant")
    quantisers = {node.input[0]: node for node in nodes if node.op_type == "QuantizeLinear"}
    dequantisers = {node.input[0]: node for node in nodes if node.op_type == "DequantizeLinear"}
    for node in [node for node in nodes if node.op_type == "Shape" and node.input[0] in quantisers]:
        quantiser = quantisers[node.input[0]]
        dequantiser = dequantisers[quantiser.output[0]]
        for own in (own for own in (quantiser, dequantiser) if nodes.index(own) > nodes.index(node)):
            nodes.remove(own)
            nodes.insert(nodes.index(node), own)
        node.input[0] = dequantiser.output[0]
    del graph.node[:]
    graph.node.extend(nodes)
