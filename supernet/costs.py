"""Counting what a plain module costs, whatever it is made of.

A *multiply-accumulate* (MAC) is one product that is added to a sum, in these functions of torch and in what is made of
them (layers, `einsum`, `tensordot`, `linalg.multi_dot`, ...):

- convolutions: outputs x inputs of a group x kernel positions, for each pixel that comes out; transposed ones for each
  pixel that goes in, deformable ones as plain ones;
- products of matrices and vectors: `m k n` for [m, k] @ [k, n], also where a batch, a sum or an activation is fused;
- attention: the products of queries with keys and of weights with values, in full, whatever a mask leaves out;
- recurrent layers and cells: the products with their weights, at every step of the sequence;
- bilinear layers: the two products of a contraction, one after the other.

Biases, normalisation, activations, pooling, interpolation, look-ups, distances, Fourier transforms, and products
element by element, such as gates and outer products, cost none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from supernet.plain import inputs_like
from supernet.skeleton import without_data

# B batch, H heads, Q queries, S keys, D channels of queries and keys, E of values, O outputs, T time steps


def count_macs(module: nn.Module, example: Sequence[int] | tuple) -> int:
    """Multiply-accumulates of `module` as it is built, in eval mode, for one image of the size `example`, [C, H, W], or
    for a tuple of inputs like `example`, tensors of which shapes and types alone matter.

    Follows a forward pass of a copy on the meta device, without data; `module` stays as it is, and its weights may lie
    anywhere. A forward that asks for values runs on the CPU instead, on zeros. Tens of milliseconds a
    module: families with a formula of their own are much faster. What is merged for deployment (the branches of RepVGG,
    say) counts unmerged. ValueError if `module` does not run on such inputs.
    """
    return without_data(module, partial(_count, example))


def count_parameters(module: nn.Module) -> int:
    """The parameters of `module`, trainable or frozen, each once however often it is used."""
    return sum(parameter.numel() for parameter in module.parameters())


def stored_bytes(model: nn.Module, bits: int = 32) -> int:
    """What the parameters of `model` take where weights have `bits` each, in bytes.

    Tensors of two or more dimensions (kernels, matrices) take `bits` a number, each tensor rounded up to whole bytes.
    Vectors stay in single precision: biases, and the scales and shifts of normalisation, in whose place a deployed int8
    layer has a step and a bias for each channel. Running statistics are folded into these and take nothing, nor do
    constants that follow from the architecture, the graph, or a container around it all. A parameter that is used twice
    counts once.
    """
    return sum(
        math.ceil(parameter.numel() * (bits if parameter.dim() > 1 else 32) / 8) for parameter in model.parameters()
    )


def flop_counter() -> FlopCounterMode:
    """Counts twice the multiply-accumulates of what runs within it, in all and not by module."""
    counter = FlopCounterMode(display=False, custom_mapping=_flops())
    counter.mod_tracker = _InAll()
    return counter


class _InAll(nullcontext):
    """In place of the hooks by which torch's counter knows the module that runs, which call functions themselves."""

    parents = frozenset(("Global",))


def _count(example: Sequence[int] | tuple, module: nn.Module, device: torch.device) -> int:
    if all(isinstance(size, int) for size in example):
        example = (torch.empty(1, *example, device="meta"),)
    inputs = inputs_like(example, module, device)
    with flop_counter() as counter:
        module(*inputs)
    return counter.get_total_flops() // 2


def _flops() -> Mapping[object, Callable[..., int]]:
    """Twice the MACs of operators that torch's counter takes for free, by their shapes."""
    aten = torch.ops.aten
    formulas: dict[object, Callable[..., int]] = {
        aten.addmm_: lambda added, a, b, **_: _product(a, b),
        aten._addmm_activation: lambda added, a, b, **_: _product(a, b),
        aten.baddbmm_: lambda added, a, b, **_: _product(a, b),
        aten.addbmm: lambda added, a, b, **_: _product(a, b),
        aten.addbmm_: lambda added, a, b, **_: _product(a, b),
        aten.addmv: lambda added, a, b, **_: _product(a, b),
        aten.addmv_: lambda added, a, b, **_: _product(a, b),
        aten.mv: lambda a, b, **_: _product(a, b),
        aten.dot: lambda a, b, **_: _product(a, b),
        aten.vdot: lambda a, b, **_: _product(a, b),
        aten.conv_tbc: lambda x, weight, *_, out_shape: 2 * math.prod(out_shape[:2]) * math.prod(weight),
        aten.mkldnn_rnn_layer: _recurrent,
        aten._trilinear: _trilinear,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_fused_attention_overrideable: _attention,
    }
    if hasattr(torch.ops.torchvision, "deform_conv2d"):  # once torchvision is imported
        deformable = torch.ops.torchvision.deform_conv2d
        formulas[deformable] = lambda x, weight, *_, out_shape: 2 * math.prod(out_shape[2:]) * math.prod(weight)
    return formulas


def _product(a: Sequence[int], b: Sequence[int]) -> int:
    """Of [..., m, k] with [..., k, n] or [k]."""
    return 2 * math.prod(a) * (b[-1] if len(b) > 1 else 1)


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_, **__) -> int:
    """Of [B, H, Q, D] with [B, H', S, D] and [B, H', S, E], where several heads of queries may share one of keys."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent(x: Sequence[int], input_weight: Sequence[int], hidden_weight: Sequence[int], *_, **__) -> int:
    """Of one layer and direction on [T, B, D]."""
    return 2 * math.prod(x[:-1]) * (math.prod(input_weight) + math.prod(hidden_weight))


def _trilinear(x: Sequence[int], weight: Sequence[int], y: Sequence[int], *_, **__) -> int:
    """Of [B, D], [O, D, E] and [B, E], as einsum("bd, ode, be -> bo") contracts them: D first, then E."""
    outputs, inputs, others = weight
    return 2 * x[0] * outputs * others * (inputs + 1)
