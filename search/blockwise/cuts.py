"""Where a supernet and a teacher are cut into blocks: at places of the same resolution, or as many tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch

from search.blockwise.features import CutPlace, Feature, Stop, cut_places, walk
from search.prefix.dependence import Dependence
from supernet.families import Family
from supernet.nesting import covering_archs, probing_archs
from supernet.plain import inputs_like
from supernet.skeleton import build_skeleton
from supernet.space import Arch, SearchSpace


class Unmatched(ValueError):
    """The features of a teacher and of subnets are nowhere of one size."""


class Cut(NamedTuple):
    """Where a block ends."""

    target: Feature  # of the teacher
    name: str  # of the module of the subnets
    scope: frozenset[str]  # the choices that the block depends on


def given_cuts(
    family: Family, space: SearchSpace, features: Sequence[Feature], names: Sequence[str], *, grids: bool = True
) -> list[Cut]:
    """The cuts behind the modules `names`, one for each of the teacher's features.

    With `grids` tokens of images are maps, on both sides. ValueError, listing the features of both networks, if they do
    not match in number or, as `Unmatched`, in size.
    """
    if len(names) != len(features):
        raise ValueError(
            f"the teacher has {len(features)} features ({_list(features)}), but the supernet is cut {len(names)} times "
            f"({', '.join(names)}): there is one feature for every block"
        )
    subnets = _features(family, space, grids)
    for name, feature in zip(names, features):
        inside = [own for own in subnets if f"{own.name}.".startswith(f"{name}.")]
        if not inside:
            raise ValueError(f"a subnet has no feature at {name!r}; it has {_list(subnets)}")
        if inside[-1].size != feature.size:
            raise Unmatched(
                f"the block that ends with {name!r} has features of {_size(inside[-1])}, and the teacher's at "
                f"{feature.name!r} have {_size(feature)}: the teacher has {_list(features)}, "
                f"the subnet {_list(subnets)}"
            )
    return _cuts(Dependence.of_family(family, space), names, features)


def matching_cuts(
    family: Family, space: SearchSpace, features: Sequence[Feature], max_paths: int, *, grids: bool = True
) -> list[Cut]:
    """The cuts into blocks of at most `max_paths` paths at the sizes that both subnets and teacher have features of: at
    the places of all subnets that `match` finds for the teacher's `features`.

    With `grids` tokens of images are maps, on both sides. ValueError, listing the features of both networks, as
    `Unmatched` if no size matches, or as `match` raises it.
    """
    dependence = Dependence.of_family(family, space)

    def paths(before: CutPlace | None, last: CutPlace) -> float:
        if before and any(a >= b for a, b in zip(before.ends, last.ends)):
            return math.inf
        names = [place.name for place in (before, last) if place]
        return space.subspace(dependence.scopes(names)[-1]).size

    archs = dict.fromkeys([*covering_archs(space), *probing_archs(space, 2)])  # together they have every value
    places = cut_places([_walk_subnet(family, arch, grids) for arch in archs])
    matched = match(places, features, paths, max_paths)
    if not matched:
        raise Unmatched(
            f"the teacher has no features at the resolutions of the supernet: it has {_list(features)}, "
            f"and that has {_list(_features(family, space, grids))}"
        )
    return _cuts(dependence, [place.name for place, _ in matched], [feature for _, feature in matched])


def match(
    places: Sequence[CutPlace],
    features: Sequence[Feature],
    paths: Callable[[CutPlace | None, CutPlace], float],
    max_paths: float,
) -> list[tuple[CutPlace, Feature]]:
    """The places that blocks end at, and their targets among the teacher's features, both in the order of the networks.

    At every resolution of more than one pixel that both have, or number of tokens, a block ends at the last place, and
    its target is the last feature. Where it would have more than `max_paths` paths, it is cut at earlier places of this
    resolution, as few as may be, and then such that there are as few paths as possible; the targets of these blocks are
    the features there at even distances. `paths(before, last)` counts the paths of the block between two places, the
    first block beginning at None; it is infinite where some subnet has nothing between them.

    ValueError, listing what there is, if blocks of at most `max_paths` paths need more places or features.
    """
    matched: list[tuple[CutPlace, Feature]] = []
    for size in dict.fromkeys(feature.size for feature in features):
        own = [place for place in places if place.size == size]
        targets = [feature for feature in features if feature.size == size]
        if not own or max(size) == 1:
            continue
        before = matched[-1][0] if matched else None
        ends = _fewest(before, own, paths, max_paths)
        if not 0 < len(ends) <= len(targets):
            last = own[-1]
            within = [place.name for place in own if all(a < b for a, b in zip(place.ends, last.ends))]
            raise ValueError(
                f"the block that ends with {last.name!r} has {paths(before, last)} paths, and beyond {max_paths} there "
                f"are too many to rate; it can be cut behind {', '.join(within) or 'no other module'}, and the teacher "
                f"has {_list(targets)} there"
            )
        at = [math.ceil(i * len(targets) / len(ends)) - 1 for i in range(1, len(ends) + 1)]
        matched += zip(ends, [targets[index] for index in at])
    return matched


def _fewest(
    before: CutPlace | None,
    places: Sequence[CutPlace],
    paths: Callable[[CutPlace | None, CutPlace], float],
    max_paths: float,
) -> list[CutPlace]:
    """The ends of the fewest blocks from `before` to the last of the places, empty if none have at most `max_paths`."""
    bounds = [before, *places]
    count = cache(lambda start, end: paths(bounds[start], bounds[end]))
    if count(0, len(places)) <= max_paths:
        return [places[-1]]
    best: dict[int, tuple[int, float, list[int]]] = {0: (0, 0, [])}  # blocks, paths and ends up to a bound
    for end in range(1, len(bounds)):
        ways = [
            (blocks + 1, total + count(start, end), [*ends, end])
            for start, (blocks, total, ends) in best.items()
            if count(start, end) <= max_paths
        ]
        if ways:
            best[end] = min(ways)
    return [bounds[end] for end in best[len(places)][-1]] if len(places) in best else []


def _walk_subnet(family: Family, arch: Arch, grids: bool) -> list[Stop]:
    model = build_skeleton(family.build, arch).eval()
    return walk(model, inputs_like(family.example(arch), model, torch.device("meta"), count=2), grids=grids)


def _features(family: Family, space: SearchSpace, grids: bool) -> list[Feature]:
    """What the pieces of the largest subnet compute, named after modules; of several of one name the last."""
    stops = _walk_subnet(family, space.largest, grids)
    return list({stop.feature.name: stop.feature for stop in stops if stop.feature}.values())


def _cuts(dependence: Dependence, names: Sequence[str], targets: Sequence[Feature]) -> list[Cut]:
    scopes = dependence.scopes(names)
    dependence.check(names, scopes)
    return [Cut(target, name, frozenset(scope)) for target, name, scope in zip(targets, names, scopes)]


def _size(feature: Feature) -> str:
    return f"{feature.size[0]} tokens" if feature.is_tokens else "x".join(map(str, feature.size))


def _list(features: Sequence[Feature]) -> str:
    return ", ".join(f"{feature.name} ({_size(feature)})" for feature in features) or "neither maps nor tokens"
