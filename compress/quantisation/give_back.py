"""Which layers get their float back, so that a network in int8 keeps within limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import nn

from compress.allocation import allocate
from compress.quantisation.network import Precision
from compress.quantisation.points import layers
from compress.sensitivity import Sensitivity

Precisions = Mapping[str, Precision]  # of the layers that are not in int8
OPTIONS: tuple[Precision, ...] = ("int8", "weights", "float")
SCALE_BYTES = 4  # the step of a channel


def steps_back(found: Iterable[Sensitivity]) -> list[Precisions]:
    """From all layers in int8 to all in float, one step more each time: the step that takes off most of the divergence.

    A layer's first step gives it activations in float and keeps its weights in 8 bits, which costs time and no bytes;
    its second gives it all. Where the second takes off more than the first, both are one step, by their mean.
    """
    divergences = _by_layer(found)
    gains: list[tuple[float, str, Precision]] = []
    for layer, of in divergences.items():
        first, second = of["int8"] - of["weights"], of["weights"]
        if second >= first:
            gains.append(((first + second) / 2, layer, "float"))
        else:
            gains += [(first, layer, "weights"), (second, layer, "float")]
    taken: dict[str, Precision] = {}
    steps: list[Precisions] = [{}]
    for _, layer, precision in sorted(gains, key=lambda gain: -gain[0]):  # a layer's first step comes first
        taken[layer] = precision
        steps.append(dict(taken))
    return steps


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


def least_divergence(found: Iterable[Sensitivity], model: nn.Module, weight_bytes: float) -> Precisions:
    """The precisions whose summed divergence is least while the weights of these layers take at most `weight_bytes`,
    exactly (`compress.allocation.allocate`). ValueError for fewer than all take in int8, which it names."""
    divergences = _by_layer(found)
    gains = [[-of[option] for option in OPTIONS] for of in divergences.values()]
    costs = [[bytes_of_weight(layers(model)[layer], option) for option in OPTIONS] for layer in divergences]
    chosen = allocate(gains, costs, weight_bytes)
    return {layer: OPTIONS[option] for layer, option in zip(divergences, chosen) if option}


def bytes_of_weight(layer: nn.Module, precision: Precision) -> int:
    """What the weight of a layer takes in a file."""
    weight = layer.weight
    return 4 * weight.numel() if precision == "float" else weight.numel() + len(weight) * SCALE_BYTES


def _by_layer(found: Iterable[Sensitivity]) -> dict[str, dict[Precision, float]]:
    """The divergence of each layer in each precision; in float it is 0, and rounding errors are not below it."""
    divergences: dict[str, dict[Precision, float]] = {}
    for own in found:
        of = divergences.setdefault(own.layer, dict.fromkeys(OPTIONS, math.nan))
        of[own.precision] = max(own.divergence, 0.0)
        of["float"] = 0.0
    return divergences
