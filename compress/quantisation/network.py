"""A network as it computes in int8, layer by layer as it is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress.quantisation.compensation import compensated
from compress.quantisation.points import Points, layers, sharing, untied
from compress.quantisation.processor import weight_bits
from compress.quantisation.ranges import LEVELS, Method, Range, activation_ranges
from compress.transforms import Bits, fold, transformed
from supernet.artifacts.deployment import deployed
from supernet.calibration import Inputs
from supernet.skeleton import copy_to

Precision = Literal["int8", "weights", "float"]
Rounding = Literal["nearest", "compensated"]


@dataclass(frozen=True)
class Quantisation:
    """How a network is quantised: the layers in "int8" compute on activations and weights of 8 bits, those in "weights"
    on activations in float and weights of 8 bits, those in "float" as ever."""

    ranges: Mapping[str, Range]  # of points
    precisions: Mapping[str, Precision] = field(default_factory=dict)  # of layers by name; by default int8
    weight_bits: int = 8
    values: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    """Weights and biases by name that layers have instead of their own when they are rounded, as
    `compress.quantisation.compensation` finds them; a weight is rounded to the nearest then."""

    def precision(self, layer: str) -> Precision:
        """That of a layer: float too where calibration has not met it."""
        return self.precisions.get(layer, "int8") if f"{layer}.input" in self.ranges else "float"


class Quantised(nn.Module):
    """A copy of `model`, which is as `supernet.artifacts.deployment.deployed` gives it, in eval mode and with values in
    float that are those of 8 bits."""

    def __init__(self, model: nn.Module, quantisation: Quantisation) -> None:
        super().__init__()
        self.quantisation = quantisation
        copy = copy_to(model, next(model.parameters(), torch.empty(0)).device)
        rounded = [name for name in layers(model) if quantisation.precision(name) != "float"]
        for name in rounded:
            for part in {"weight", "bias"} & {own.removeprefix(f"{name}.") for own in quantisation.values}:
                value = nn.Parameter(quantisation.values[f"{name}.{part}"], requires_grad=False)
                setattr(copy.get_submodule(name), part, value)
        bits = Bits(quantisation.weight_bits)
        self.network = fold(transformed(copy, {f"{name}.weight": bits for name in rounded})).eval()

    def forward(self, *inputs: Any) -> Any:
        found = layers(self.network).items()
        weights = {id(layer.weight): name for name, layer in found if self.quantisation.precision(name) == "int8"}
        with Points(weights, self._rounded):
            return self.network(*inputs)

    def _rounded(self, point: str, x: Tensor) -> Tensor:
        own = self.quantisation.ranges[point]
        return torch.fake_quantize_per_tensor_affine(x, own.step, own.zero_point, 0, LEVELS)


def planned(
    model: nn.Module,
    calibration: Sequence[Inputs],
    method: Method = "squares",
    precisions: Mapping[str, Precision] | None = None,
    reduce_range: bool | None = None,
    rounding: Rounding = "compensated",
) -> tuple[nn.Module, Quantisation]:
    """What `Quantised` takes for `model` in int8, or in the `precisions` of its layers by name, by ranges of
    activations that batches of training examples, prepared as for evaluation, have: each what `model` is called with, a
    tuple for several inputs.

    Weights are rounded by channel, symmetrically, to the nearest or so that a layer's make up for each other's errors
    (`compress.quantisation.compensation`), those that layers share to the nearest in any case; activations by tensor,
    with a zero point (`activation_ranges`). With `reduce_range` weights have 7 bits, so that x86 processors without
    VNNI compute what the network says (`products_saturate`): give it for a device that is one, if this machine, which
    decides by default, is not.
    """
    plain = deployed(model)
    shared = sharing(plain)
    untied(plain)
    ranges = activation_ranges(plain, calibration, method)
    bits = weight_bits(reduce_range)
    found = compensated(plain, calibration, bits) if rounding == "compensated" else {}
    values = {name: value for name, value in found.items() if name.rpartition(".")[0] not in shared}
    return plain, Quantisation(ranges, precisions or {}, bits, values)


def quantise(
    model: nn.Module,
    calibration: Sequence[Inputs],
    method: Method = "squares",
    precisions: Mapping[str, Precision] | None = None,
    reduce_range: bool | None = None,
    rounding: Rounding = "compensated",
) -> Quantised:
    """`model` in 8 bits; see `planned`."""
    return Quantised(*planned(model, calibration, method, precisions, reduce_range, rounding))
