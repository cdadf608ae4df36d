"""Where in a network maps lie: at the ends of its pieces, in all of some networks, at a teacher's points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.blockwise import Teacher
from distill.temporary import hooks
from search.prefix.dependence import end_of, layer_names
from search.prefix.pieces import cut

# B batch, C channels, H height, W width


class Feature(NamedTuple):
    """What a network computes at some point: [B, C, H, W]."""

    name: str
    channels: int
    size: tuple[int, int]


class CutPlace(NamedTuple):
    """Where some networks can be cut: at a map of one size."""

    name: str  # of the innermost module that ends there in all of them
    size: tuple[int, int]
    ends: tuple[int, ...]  # in each network, the number of pieces up to there


class Stop(NamedTuple):
    """The end of a piece of a network."""

    layers: tuple[str, ...]  # names of the modules of the piece
    map: Feature | None  # what the piece computes, if it has modules and computes a map
    is_layers_output: bool  # whether what the piece computes is what its last module put out
    ends_layer: bool  # whether the next piece has a matrix or a kernel: what follows a convolution before belongs to it


def walk(model: nn.Module, x: Tensor) -> list[Stop]:
    """Run the pieces of `model`, which is in eval mode, one after the other on `x`, and say where each ends."""
    pieces = cut(model)
    stops = []
    for piece, layers, following in zip(pieces, layer_names(model, pieces), [*pieces[1:], nn.Identity()]):
        made: list[Tensor] = []
        with hooks(
            layer.register_forward_hook(lambda *args, made=made: made.append(args[2])) for layer in piece.layers
        ):
            x = piece(x)
        found = _feature(layers[-1], x) if layers and x.dim() == 4 else None
        ends_layer = any(parameter.dim() > 1 for parameter in following.parameters())
        stops.append(Stop(layers, found, bool(made) and made[-1] is x, ends_layer))
    return stops


def cut_places(networks: Sequence[Sequence[Stop]]) -> list[CutPlace]:
    """In their order, the places where all of some networks, walked, have a map of one size, and either a layer ends
    there or it is the last map of this size."""
    found: dict[tuple[int, ...], CutPlace] = {}
    for name in dict.fromkeys(name for stop in networks[0] if stop.map for name in _with_parents(stop.map.name)):
        ends = tuple(end_of([stop.layers for stop in stops], name) for stops in networks)
        here = [stops[end - 1] for stops, end in zip(networks, ends) if end]
        sizes = {stop.map and stop.map.size for stop in here}
        if len(here) < len(networks) or len(sizes) > 1 or None in sizes:
            continue
        (size,) = sizes
        last = tuple(max(i for i, s in enumerate(stops, 1) if s.map and s.map.size == size) for stops in networks)
        if all(stop.ends_layer for stop in here) or ends == last:
            found[ends] = CutPlace(name, size, ends)  # a module comes after those that it is in
    return sorted(found.values(), key=lambda place: place.ends)


def maps_of(teacher: Teacher, images: Tensor) -> list[Feature]:
    """The features at the teacher's points; ValueError if they are no maps."""
    maps = dict(zip(teacher.points, teacher(images)))
    if flat := [name for name, y in maps.items() if y.dim() != 4]:
        raise ValueError(f"blocks imitate maps [N, C, H, W], and the teacher's features at {flat[0]!r} are none")
    return [_feature(name, y) for name, y in maps.items()]


def finer_features(teacher: Teacher, images: Tensor) -> list[Feature]:
    """The teacher's features at its points, and before each point those at the ends of its layers.

    Layers are what `search.prefix.pieces` cuts a network into; one ends where the next has a matrix or a kernel.
    `images` [B, C, H, W] are a few. ValueError for features that are no maps.
    """
    features = maps_of(teacher, images)
    with torch.no_grad():
        stops = walk(teacher.model, images.clone())
    points = {feature.name: end_of([stop.layers for stop in stops], feature.name) for feature in features}
    if not all(points.values()):  # a point is within a layer
        return features
    between = {
        stop.layers[-1]: end
        for end, stop in enumerate(stops[: max(points.values())], 1)
        if stop.is_layers_output and stop.ends_layer and end not in points.values()
    }
    ends = between | points
    names = sorted(ends, key=ends.__getitem__)
    return [
        _feature(name, y)
        for name, y in zip(names, Teacher(teacher.model, names)(images))  # which turns tokens into maps
        if name in points or any(ends[f.name] > ends[name] and f.size == y.shape[2:] for f in features)
    ]


def _with_parents(name: str) -> list[str]:
    """The name of a module, after those of the modules that it is in, the outermost first."""
    return [".".join(name.split(".")[:count]) for count in range(1, name.count(".") + 2)]


def _feature(name: str, y: Tensor) -> Feature:
    return Feature(name, y.shape[1], tuple(y.shape[2:]))
