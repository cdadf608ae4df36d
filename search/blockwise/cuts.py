"""Where a supernet and a teacher are cut into blocks: at places of the same resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.blockwise import Teacher
from search.prefix.dependence import Dependence, end_of, layer_names
from search.prefix.pieces import cut
from search.temporary import hooks
from supernet.families import Family
from supernet.nesting import covering_archs, probing_archs
from supernet.skeleton import build_skeleton
from supernet.space import Arch, SearchSpace

# B batch, C channels, H height, W width


class Feature(NamedTuple):
    """What a network computes at some point: [B, C, H, W]."""

    name: str
    channels: int
    size: tuple[int, int]


class Cut(NamedTuple):
    """Where a block ends."""

    target: Feature  # of the teacher
    name: str  # of the module of the subnets
    scope: frozenset[str]  # the choices that the block depends on


def given_cuts(family: Family, space: SearchSpace, features: Sequence[Feature], names: Sequence[str]) -> list[Cut]:
    """The cuts behind the modules `names`, one for each of the teacher's features.

    ValueError, listing what was found, if they do not match in number or resolution.
    """
    _check(outputs(family, space.largest), features, names)
    return _cuts(Dependence.of_family(family, space), features, names)


def matching_cuts(family: Family, space: SearchSpace, features: Sequence[Feature], max_paths: int) -> list[Cut]:
    """The cuts at the resolutions, of more than one pixel, that both subnets and teacher have `features` at.

    A block ends with the last module at such a resolution, and its target is the teacher's last feature there. Where
    it would have more than `max_paths` paths, it is cut once more, or as often as must be, at places that all subnets
    have at this resolution, such as the ends of stages, so that there are as few paths as possible; its parts' targets
    are the teacher's features there, at even distances.

    ValueError, listing what was found, if no resolution matches, or if there are too few features or places for blocks
    of at most `max_paths` paths.
    """
    dependence = Dependence.of_family(family, space)
    places = _places(family, space)
    chosen: list[_Place] = []
    targets: list[Feature] = []
    for size in dict.fromkeys(feature.size for feature in features):
        own = [place for place in places if place.size == size]
        if not own or max(size) == 1:
            continue
        found = [feature for feature in features if feature.size == size]
        more = _divide(dependence, space, chosen[-1] if chosen else None, own, found, max_paths)
        chosen += more
        targets += [found[math.ceil(i * len(found) / len(more)) - 1] for i in range(1, len(more) + 1)]
    if not chosen:
        raise ValueError(
            f"the teacher has no features at the resolutions of the supernet: it has {_list(features)}, "
            f"and that has {_list(outputs(family, space.largest))}"
        )
    return _cuts(dependence, targets, [place.name for place in chosen])


def finer_features(teacher: Teacher, images: Tensor) -> list[Feature]:
    """The teacher's features at its points, and before each point those at the ends of its layers.

    Layers are what `search.prefix.pieces` cuts a network into; one ends where the next has a matrix or a kernel.
    `images` [B, C, H, W] are a few. ValueError for features that are no maps.
    """
    model, found = teacher.model, maps_of(teacher, images)
    with torch.no_grad():
        stops = walk(model, images.clone())
    points = {point: end_of([stop.layers for stop in stops], point) for point in teacher.points}
    if not all(points.values()):  # within a layer
        return found
    ends = {
        stop.layers[-1]: end
        for end, stop in enumerate(stops[: max(points.values())], 1)
        if stop.is_layers_output and stop.ends_layer and end not in points.values()
    }
    ends |= points
    names = sorted(ends, key=ends.__getitem__)
    return [
        _feature(name, y)
        for name, y in zip(names, Teacher(model, names)(images))
        if name in points or any(ends[f.name] > ends[name] and f.size == y.shape[2:] for f in found)
    ]


def maps_of(teacher: Teacher, images: Tensor) -> list[Feature]:
    """The features at the teacher's points; ValueError if they are no maps."""
    maps = dict(zip(teacher.points, teacher(images)))
    if flat := [name for name, y in maps.items() if y.dim() != 4]:
        raise ValueError(f"blocks imitate maps [N, C, H, W], and the teacher's features at {flat[0]!r} are none")
    return [_feature(name, y) for name, y in maps.items()]


def _feature(name: str, y: Tensor) -> Feature:
    return Feature(name, y.shape[1], tuple(y.shape[2:]))


def outputs(family: Family, arch: Arch) -> list[Feature]:
    """The maps that the pieces of a subnet compute, named after modules; of several of one name the last."""
    return list({stop.map.name: stop.map for stop in _subnet(family, arch) if stop.map}.values())


class Stop(NamedTuple):
    """The end of a piece of a network."""

    layers: tuple[str, ...]  # names of the modules of the piece
    map: Feature | None  # what the piece computes, if it has modules and computes a map
    is_layers_output: bool  # whether that is what its last module put out
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


class _Place(NamedTuple):
    """A place that all subnets have."""

    name: str  # the innermost module that ends there in all
    size: tuple[int, int]
    ends: tuple[int, ...]  # in some subnets, the number of pieces up to it


def _subnet(family: Family, arch: Arch) -> list[Stop]:
    size = family.resolution(arch)
    image = torch.empty(2, family.in_chans, size, size, device="meta")
    return walk(build_skeleton(family.build, arch).eval(), image)


def _places(family: Family, space: SearchSpace) -> list[_Place]:
    """In their order, the places where a layer ends or the resolution changes, in all of some subnets that together
    have every value."""
    archs = dict.fromkeys([*covering_archs(space), *probing_archs(space, 2)])
    subnets = [_subnet(family, arch) for arch in archs]
    found: dict[tuple[int, ...], _Place] = {}
    for name in dict.fromkeys(name for stop in subnets[0] if stop.map for name in _with_parents(stop.map.name)):
        ends = tuple(end_of([stop.layers for stop in stops], name) for stops in subnets)
        maps = [stops[end - 1].map for stops, end in zip(subnets, ends) if end]
        if len(maps) == len(subnets) and len({feature and feature.size for feature in maps}) == 1 and maps[0]:
            last = (max(i for i, s in enumerate(stops, 1) if s.map and s.map.size == maps[0].size) for stops in subnets)
            at_end = all(stops[end - 1].ends_layer for stops, end in zip(subnets, ends)) or ends == tuple(last)
            if at_end and len(name) > len(found[ends].name if ends in found else ""):
                found[ends] = _Place(name, maps[0].size, ends)
    return sorted(found.values(), key=lambda place: place.ends)


def _with_parents(name: str) -> list[str]:
    """The name of a module, and those of the modules that it is in."""
    return [".".join(name.split(".")[:count]) for count in range(1, name.count(".") + 2)]


def _divide(
    dependence: Dependence,
    space: SearchSpace,
    before: _Place | None,
    places: Sequence[_Place],
    features: Sequence[Feature],
    max_paths: int,
) -> list[_Place]:
    """Those of the `places` at one resolution that blocks end with, the last one and as few before as may be."""
    stops = [before, *places]

    @cache
    def paths(start: int, end: int) -> float:
        """Of the block between two stops; infinite where some subnet has nothing between them."""
        first, last = stops[start], stops[end]
        if first and any(a >= b for a, b in zip(first.ends, last.ends)):
            return math.inf
        names = [stop.name for stop in (first, last) if stop]
        return space.subspace(dependence.scopes(names)[-1]).size

    if paths(0, len(places)) <= max_paths:
        return [places[-1]]
    best: dict[int, tuple[int, float, list[int]]] = {0: (0, 0, [])}  # blocks, paths and ends up to a stop
    for end in range(1, len(stops)):
        ways = [
            (blocks + 1, total + paths(start, end), [*ends, end])
            for start, (blocks, total, ends) in best.items()
            if paths(start, end) <= max_paths
        ]
        if ways:
            best[end] = min(ways)
    blocks, _, ends = best.get(len(places), (math.inf, 0, []))
    if blocks > len(features):
        within = [place for place in places if all(a < b for a, b in zip(place.ends, places[-1].ends))]
        others = ", ".join(place.name for place in within) or "no other module"
        raise ValueError(
            f"the block that ends with {places[-1].name!r} has {paths(0, len(places))} paths, and beyond {max_paths} "
            f"there are too many to rate; it can be cut behind {others}, and the teacher has {_list(features)} there"
        )
    return [stops[end] for end in ends]


def _cuts(dependence: Dependence, features: Sequence[Feature], names: Sequence[str]) -> list[Cut]:
    scopes = dependence.scopes(names)
    dependence.check(names, scopes)
    return [Cut(feature, name, frozenset(scope)) for feature, name, scope in zip(features, names, scopes)]


def _check(own: Sequence[Feature], features: Sequence[Feature], names: Sequence[str]) -> None:
    if len(names) != len(features):
        raise ValueError(
            f"the teacher has {len(features)} features ({_list(features)}), but the supernet is cut {len(names)} times "
            f"({', '.join(names)}): there is one feature for every block"
        )
    for name, feature in zip(names, features):
        inside = [mine for mine in own if f"{mine.name}.".startswith(f"{name}.")]
        if not inside:
            raise ValueError(f"a subnet has no map at {name!r}; it has {_list(own)}")
        if inside[-1].size != feature.size:
            raise ValueError(
                f"the block that ends with {name!r} has maps of {_pixels(inside[-1])} pixels, and the teacher's at "
                f"{feature.name!r} have {_pixels(feature)}: the teacher has {_list(features)}, the subnet {_list(own)}"
            )


def _pixels(feature: Feature) -> str:
    return "x".join(map(str, feature.size))


def _list(features: Sequence[Feature]) -> str:
    return ", ".join(f"{feature.name} ({_pixels(feature)})" for feature in features) or "no maps"
