"""The sizes that timm's modules above the layers keep, brought up to date when the layers become narrower.

A model says how many channels its features have (`num_features`, `head_hidden_size`, `embed_dim`, `feature_info`), and
so do its heads and some of its blocks. Its public methods read that: `reset_classifier` makes a layer of that many
inputs, `features_only` tells a decoder, `reparameterize` makes the merged convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

INPUTS = ("in_chs", "in_channels", "in_features", "dim", "groups")  # sizes of what a module takes in
OUTPUTS = ("num_features", "head_hidden_size", "hidden_size", "out_chs", "out_channels", "dim_out")  # and puts out
FIRST = ("embed_dim",)  # of what its first layer puts out


class _Place(NamedTuple):
    """Where a size can be read: the inputs, outputs or groups of a layer."""

    layer: str
    side: str


class _Kept(NamedTuple):
    """A number that a module keeps, and the places where the layers say the same."""

    module: str
    attribute: str
    places: list[_Place]  # the likeliest first


def keep_sizes(model: nn.Module, reduce: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """`reduce(model)`, which takes channels and blocks away in place; what timm's modules keep of their sizes follows.

    A number is taken to be that of the last layer within its module that puts as many channels out, or of the first one
    that takes as many in, by what its name says. Features of a block that is gone are those of the last one before it,
    unless that one has features of its own.
    """
    kept = list(_kept(model))
    features, names = _features(model), {name for name, _ in model.named_modules()}
    reduced = reduce(model)
    left = dict(reduced.named_modules())
    for module, attribute, places in kept:
        if module in left and (size := _read(left, places)) is not None:
            setattr(left[module], attribute, size)
    if features is not None:
        reduced.feature_info = _update(reduced.feature_info, features, names, left)
    return reduced


def _kept(model: nn.Module) -> Iterator[_Kept]:
    layers = list(_layers(model))
    for name, module in model.named_modules():
        numbers = {} if _sizes(module) or not _is_timms(module) else vars(module)
        for attribute in numbers.keys() & {*INPUTS, *OUTPUTS, *FIRST}:
            value = numbers[attribute]
            if not isinstance(value, int) or value < 2:
                continue
            within = [layer for layer in layers if not name or layer[0].startswith(f"{name}.")]
            if attribute in OUTPUTS:
                yield _Kept(name, attribute, list(_places(value, reversed(within), ("out", "in"))))
            else:
                # where a branch is left that only normalises, it has as many groups as channels
                sides = (
                    ("groups", "in") if attribute == "groups" else ("in", "out") if attribute in INPUTS else ("out",)
                )
                yield _Kept(name, attribute, list(_places(value, within, sides)))


def _is_timms(module: nn.Module) -> bool:
    return type(module).__module__.startswith("timm.")


def _features(model: nn.Module) -> list[list[_Place]] | None:
    """For each of the features that `model` tells of, where their number of channels can be read."""
    if not isinstance(getattr(model, "feature_info", None), list):
        return None
    layers = list(_layers(model))
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    found = []
    for info in model.feature_info:
        name = info["module"]
        within = [layer for layer in layers if f"{layer[0]}.".startswith(f"{name}.")]
        if info.get("hook_type") == "forward_pre":
            found.append(list(_places(info["num_chs"], within, ("in", "out"))))
        else:
            before = [layer for layer in layers if order[layer[0]] < order.get(name, 0)]
            found.append(list(_places(info["num_chs"], reversed(within or before), ("out", "in"))))
    return found


def _update(
    features: list[dict], places: list[list[_Place]], names: Collection[str], left: Mapping[str, nn.Module]
) -> list[dict]:
    """`names` are those of the modules before; some models tell of features of a module that they do not have."""
    named = {info["module"] for info in features}
    updated = []
    for info, of_info in zip(features, places):
        name = info["module"]
        if name in names and name not in left:
            name = _before(name, left)
            if name in named:
                continue
        updated.append({**info, "module": name, "num_chs": _read(left, of_info) or info["num_chs"]})
    return updated


def _before(name: str, left: Mapping[str, nn.Module]) -> str:
    """The last block that is left of the list in which the module `name` was, or came from."""
    parts = name.split(".")
    depth = next(depth for depth in range(len(parts), 0, -1) if ".".join(parts[:depth]) in left or depth == 1)
    stage = ".".join(parts[:depth])
    return ".".join([stage, str(len(left[stage]) - 1), *parts[depth + 1 :]])


def _layers(model: nn.Module) -> Iterator[tuple[str, Mapping[str, int]]]:
    """The layers of `model` that have sizes, in the order in which they are held; its classifier without outputs."""
    last = getattr(model, "get_classifier", lambda: None)()
    classifier = set(last if isinstance(last, tuple) else (last,))
    for name, module in model.named_modules():
        if sizes := _sizes(module):
            yield name, {side: size for side, size in sizes.items() if side != "out" or module not in classifier}


def _sizes(module: nn.Module) -> dict[str, int]:
    if isinstance(module, _ConvNd):
        return {"in": module.in_channels, "out": module.out_channels, "groups": module.groups}
    if isinstance(module, nn.Linear):
        return {"in": module.in_features, "out": module.out_features}
    if isinstance(module, _NormBase):
        return {"in": module.num_features, "out": module.num_features}
    if isinstance(module, nn.GroupNorm):
        return {"in": module.num_channels, "out": module.num_channels}
    if isinstance(shape := getattr(module, "normalized_shape", None), tuple):
        return {"in": shape[-1], "out": shape[-1]}
    return {}


def _places(size: int, layers: Iterable[tuple[str, Mapping[str, int]]], sides: tuple[str, ...]) -> Iterator[_Place]:
    for layer, sizes in layers:
        yield from (_Place(layer, side) for side in sides if sizes.get(side) == size)


def _read(modules: Mapping[str, nn.Module], places: Iterable[_Place]) -> int | None:
    return next((_sizes(modules[layer])[side] for layer, side in places if layer in modules), None)
