"""Where in a network features lie, maps or tokens: at the ends of its pieces, in all of some networks, at a teacher's
points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.blockwise import Teacher, arranged
from distill.temporary import hooks
from search.prefix.dependence import end_of, layer_names
from search.prefix.pieces import carried, cut

# B batch, C channels, H height, W width, N tokens


class Feature(NamedTuple):
    """What a network computes at some point: maps [B, C, H, W], or tokens [B, N, C]."""

    name: str
    channels: int
    size: tuple[int, ...]  # (H, W) or (N,)

    @property
    def is_tokens(self) -> bool:
        return len(self.size) == 1


class CutPlace(NamedTuple):
    """Where some networks can be cut: at a feature of one size."""

    name: str  # of the innermost module that ends there in all of them
    size: tuple[int, ...]
    ends: tuple[int, ...]  # in each network, the number of pieces up to there


class Stop(NamedTuple):
    """The end of a piece of a network."""

    layers: tuple[str, ...]  # names of the modules of the piece
    feature: Feature | None  # what the piece computes, if it has modules, computes one, and is not the last
    is_layers_output: bool  # whether what the piece computes is what its last module put out
    ends_layer: bool  # whether the next piece has a matrix or a kernel: what follows a convolution before belongs to it


def walk(model: nn.Module, inputs: tuple[Tensor, ...], *, grids: bool) -> list[Stop]:
    """Run the pieces of `model`, which is in eval mode, one after the other on its `inputs`, and say where each ends.

    Features are as `distill.blockwise.arranged` has them.
    """
    pieces = cut(model, inputs=len(inputs))
    x = carried(*inputs)
    stops = []
    for piece, layers, following in zip(pieces, layer_names(model, pieces), [*pieces[1:], None]):
        made: list[Tensor] = []
        with hooks(
            layer.register_forward_hook(lambda *args, made=made: made.append(args[2])) for layer in piece.layers
        ):
            x = piece(x)
        y = x[0] if isinstance(x, tuple) else x
        found = _feature(layers[-1], arranged(y, model, grids=grids)) if layers and following else None
        ends_layer = following is not None and any(parameter.dim() > 1 for parameter in following.parameters())
        stops.append(Stop(layers, found, bool(made) and made[-1] is y, ends_layer))
    return stops


def cut_places(networks: Sequence[Sequence[Stop]]) -> list[CutPlace]:
    """In their order, the places where all of some networks, walked, have a feature of one size, and either a layer
    ends there or it is the last feature of this size."""
    found: dict[tuple[int, ...], CutPlace] = {}
    inner = [stop.feature.name for stop in networks[0] if stop.feature]
    for name in dict.fromkeys(outer for layer in inner for outer in _with_parents(layer)):
        ends = tuple(end_of([stop.layers for stop in stops], name) for stops in networks)
        here = [stops[end - 1] for stops, end in zip(networks, ends) if end]
        sizes = {stop.feature and stop.feature.size for stop in here}
        if len(here) < len(networks) or len(sizes) > 1 or None in sizes:
            continue
        (size,) = sizes
        last = tuple(
            max(i for i, s in enumerate(stops, 1) if s.feature and s.feature.size == size) for stops in networks
        )
        if all(stop.ends_layer for stop in here) or ends == last:
            found[ends] = CutPlace(name, size, ends)  # a module comes after those that it is in
    return sorted(found.values(), key=lambda place: place.ends)


def features_of(teacher: Teacher, inputs: tuple[Tensor, ...]) -> list[Feature]:
    """The features at the teacher's points; ValueError if they are neither maps nor tokens."""
    found = dict(zip(teacher.points, _features(teacher, inputs)))
    if flat := [name for name, feature in found.items() if feature is None]:
        raise ValueError(
            "blocks imitate maps [N, C, H, W] or tokens [N, L, C], and the teacher's features at "
            f"{flat[0]!r} are neither"
        )
    return [feature for feature in found.values() if feature]


def finer_features(teacher: Teacher, inputs: tuple[Tensor, ...]) -> list[Feature]:
    """The teacher's features at its points, and before each point those at the ends of its layers.

    Layers are what `search.prefix.pieces` cuts a network into; one ends where the next has a matrix or a kernel.
    `inputs` are what the teacher is called with for a few examples. ValueError for features that are neither maps nor
    tokens.
    """
    features = features_of(teacher, inputs)
    with torch.no_grad():
        stops = walk(teacher.model, tuple(given.clone() for given in inputs), grids=teacher.grids)
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
    finer = _features(Teacher(teacher.model, names, grids=teacher.grids), inputs)
    return [
        found
        for found in finer
        if found
        and (found.name in points or any(ends[f.name] > ends[found.name] and f.size == found.size for f in features))
    ]


def _with_parents(name: str) -> list[str]:
    """The name of a module, after those of the modules that it is in, the outermost first."""
    return [".".join(name.split(".")[:count]) for count in range(1, name.count(".") + 2)]


def _features(teacher: Teacher, inputs: tuple[Tensor, ...]) -> list[Feature | None]:
    return [_feature(name, y) for name, y in zip(teacher.points, teacher(*inputs))]


def _feature(name: str, y: Tensor) -> Feature | None:
    """What `y` is; None if it is neither maps nor tokens."""
    if y.dim() == 4:
        return Feature(name, y.shape[1], tuple(y.shape[2:]))
    return Feature(name, y.shape[2], (y.shape[1],)) if y.dim() == 3 else None
