"""Where a network's activations are quantised: before layers that compute in int8, and behind them.

A layer is a convolution or a linear layer. Runtimes compute one in int8 where what goes in and what comes out is
quantised, and merge BatchNorm and ReLU that follow into it. So there are two points a layer: `NAME.input`, and
`NAME.output` behind BatchNorm and ReLU, where anything else than a layer takes that. All else computes in float, sums
of residual blocks too, whose errors would add up along the network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakIdKeyDictionary

# B batch, C channels

CALLS = {"conv1d", "conv2d", "conv3d", "linear"}
MERGED = {"batch_norm", "relu", "relu_", "relu6", "hardtanh", "hardtanh_"}  # into the layer that they follow
KEEPING = {  # values that they take are those that they give, so that what was quantised still is
    *("pad", "max_pool2d", "dropout", "flatten", "reshape", "view", "permute", "transpose", "contiguous", "squeeze"),
    *("unsqueeze", "expand", "channel_shuffle", "pixel_shuffle"),
}
FACTS = {"__get__", "size", "dim", "numel", "stride", "_assert", "is_floating_point", "__len__"}  # take no values

Activation = Callable[[str, Tensor], Tensor]  # of a point and what is there


class _At(NamedTuple):
    """What is known of a tensor: its point, and whether it has been quantised there, or is still to be."""

    point: str
    state: str  # "pending", "quantised", or "kept": made of a quantised one without other values


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of `model` that may be quantised, by name: convolutions and linear layers."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def sharing(model: nn.Module) -> set[str]:
    """The names of the layers whose weights other layers have, too."""
    known = layers(model)
    counts = Counter(id(layer.weight) for layer in known.values())
    return {name for name, layer in known.items() if counts[id(layer.weight)] > 1}


def untied(model: nn.Module) -> nn.Module:
    """`model`, in place, in which layers that shared their weights have equal ones each of their own, so that each has
    points of its own."""
    seen: set[int] = set()
    for layer in layers(model).values():
        for name, parameter in list(layer.named_parameters(recurse=False)):
            if id(parameter) in seen:
                setattr(layer, name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
            seen.add(id(getattr(layer, name)))
    return model


class Points(TorchFunctionMode):
    """While it is entered, layers get their input, and others what layers gave, from `activation`.

    `weights` gives by the identity of a weight the name of its layer; one that computes its weight first, such as a
    standardised one, is no layer, and neither is one whose weight is missing here. `weight` makes of a weight what the
    layer gets. One forward pass, as values are known by their identity.
    """

    def __init__(
        self,
        weights: Mapping[int, str],
        activation: Activation,
        weight: Callable[[Tensor], Tensor] = lambda weight: weight,
    ) -> None:
        super().__init__()
        self._weights, self._activation, self._weight = weights, activation, weight
        self._known: Any = WeakIdKeyDictionary()  # what is known of tensors
        self._made: Any = WeakIdKeyDictionary()  # what tensors became when they were quantised

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in FACTS:
            return func(*args, **kwargs)
        if name in CALLS:
            said = {**dict(zip(("input", "weight"), args)), **kwargs}
            layer = self._weights.get(id(said["weight"]))
            if layer is None:  # in float, on what there is
                return func(*args, **kwargs)
            rest = {key: value for key, value in kwargs.items() if key not in ("input", "weight")}
            output = func(self._given(layer, said["input"]), self._weight(said["weight"]), *args[2:], **rest)
            self._known[output] = _At(f"{layer}.output", "pending")
            return output
        first = self._known.get(args[0]) if args and isinstance(args[0], Tensor) else None
        if name in MERGED:
            output = func(*args, **kwargs)
            self._known.pop(output, None)  # one that works in place gives what it took
            self._made.pop(output, None)
            if first and first.state == "pending":
                self._known[output] = first
            return output
        output = func(*tree_map(self._taken, args), **tree_map(self._taken, kwargs))
        if first and name in KEEPING and isinstance(output, Tensor):
            self._known[output] = _At(first.point, "kept")
        return output

    def _given(self, layer: str, x: Tensor) -> Tensor:
        """What a layer gets."""
        at = self._known.get(x)
        if at is None or at.state == "pending":
            return self._quantised(f"{layer}.input", x)
        return x if at.state == "quantised" else self._activation(at.point, x)

    def _taken(self, x: Any) -> Any:
        """What anything else gets."""
        at = self._known.get(x) if isinstance(x, Tensor) else None
        return self._quantised(at.point, x) if at and at.state == "pending" else x

    def _quantised(self, point: str, x: Tensor) -> Tensor:
        if x not in self._made:
            self._made[x] = self._activation(point, x)
            self._known[self._made[x]] = _At(point, "quantised")
        return self._made[x]


class Observing(Points):
    """Shows `observe` what is at every point there may be, whichever layers are in int8, and changes nothing."""

    def __init__(self, weights: Mapping[int, str], observe: Callable[[str, Tensor], object]) -> None:
        super().__init__(weights, lambda point, x: x)
        self._observe = observe

    def _given(self, layer: str, x: Tensor) -> Tensor:
        self._observe(f"{layer}.input", x)
        return x

    def _taken(self, x: Any) -> Any:
        at = self._known.get(x) if isinstance(x, Tensor) else None
        if at and at.state == "pending":
            self._observe(at.point, x)
        return x
