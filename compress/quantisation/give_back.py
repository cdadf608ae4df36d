"""Which layers get their float back, so that a network in int8 keeps within limits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from compress.allocation import allocate
from compress.quantisation.network import Precision
from compress.quantisation.points import layers
from compress.sensitivity import Sensitivity
from supernet.operations import operations

# L layers, O options of a layer

Precisions = Mapping[str, Precision]  # of the layers that are not in int8
OPTIONS: tuple[Precision, ...] = ("int8", "weights", "float")
SCALE_BYTES = 4  # the step of a channel
SHRINKING, LEAST = 0.8, 1e-3  # of the divergence, from one step to the next, and of all of it at the last


class Cost(NamedTuple):
    """What a layer takes in a precision."""

    bytes: int  # of its weight in a file
    bit_operations: int  # products times bits of both factors, for one example


Costs = Mapping[str, Mapping[Precision, Cost]]  # of layers by name


def layer_costs(model: nn.Module, inputs: tuple[Tensor, ...]) -> Costs:
    """Those of the layers of `model`, called with tensors like `inputs`, of one example."""
    macs: Counter[str] = Counter()
    for operation in operations(model, inputs).operations:
        macs[operation.layer] += operation.macs
    return {
        name: {precision: _cost(layer, macs[name], precision) for precision in OPTIONS}
        for name, layer in layers(model).items()
    }


def steps_back(found: Iterable[Sensitivity], costs: Costs, weight_bytes: float = math.inf) -> list[Precisions]:
    """From all layers in int8 to the least summed divergence that weights of at most `weight_bytes` have, which is all
    of them in float where these suffice.

    Each step on the way has at most 0.8 times the divergence of that before, at the least price within these bytes,
    exactly (`compress.allocation.allocate`). The price is the sum of bit operations and bytes, each as a part of what
    all layers take in int8: activations in float cost time and no bytes, a large layer with few pixels bytes and hardly
    any time. ValueError for fewer bytes than all take in int8, which it names.
    """
    divergences = _by_layer(found)
    taken = np.array([[costs[layer][option] for option in OPTIONS] for layer in divergences], float)  # [L, O, 2]
    price = (taken / np.maximum(taken[:, :1].sum(0, keepdims=True), 1)).sum(2)
    divergence = np.array([[of[option] for option in OPTIONS] for of in divergences.values()])
    last = allocate(-divergence, taken[..., 0], weight_bytes)
    whole, least = divergence[:, 0].sum(), divergence[range(len(last)), last].sum()
    steps = [[0] * len(last)]
    allowed = SHRINKING * whole
    while allowed > max(least, LEAST * whole):
        # in parts of what is allowed, since the solver's tolerance is absolute
        steps.append(allocate(-price, divergence / allowed, 1, further=[(taken[..., 0], weight_bytes)]))
        allowed *= SHRINKING
    steps.append(last)
    named = [{layer: OPTIONS[i] for layer, i in zip(divergences, step) if i} for step in steps]
    return [step for i, step in enumerate(named) if step not in named[:i]]


def fewest_steps(steps: Sequence[Precisions], fits: Callable[[Precisions], bool]) -> Precisions | None:
    """The first of `steps` that fits, by bisection: those behind one that fits are taken to fit, too. None if the last
    does not fit."""
    if fits(steps[0]):
        return steps[0]
    if not fits(steps[-1]):
        return None
    bad, good = 0, len(steps) - 1
    while good - bad > 1:
        middle = (bad + good) // 2
        bad, good = (bad, middle) if fits(steps[middle]) else (middle, good)
    return steps[good]


def _cost(layer: nn.Module, macs: int, precision: Precision) -> Cost:
    weight = layer.weight
    if precision == "float":
        return Cost(4 * weight.numel(), 32 * 32 * macs)
    of_bytes = weight.numel() + len(weight) * SCALE_BYTES
    if precision == "int8":
        return Cost(of_bytes, 8 * 8 * macs)
    return Cost(of_bytes, 32 * 32 * macs + 8 * 32 * weight.numel())  # each weight is unpacked in every run


def _by_layer(found: Iterable[Sensitivity]) -> dict[str, dict[Precision, float]]:
    """The divergence of each layer in each precision; in float it is 0, and rounding errors are not below it."""
    divergences: dict[str, dict[Precision, float]] = {}
    for own in found:
        of = divergences.setdefault(own.layer, dict.fromkeys(OPTIONS, math.nan))
        of[own.precision] = max(own.divergence, 0.0)
        of["float"] = 0.0
    return divergences
