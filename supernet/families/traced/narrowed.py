"""A subnet with fewer channels in some layers, as a family of that one architecture: what pruning it leaves is saved,
trained, measured and exported like any subnet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from supernet.channels import Channels, narrow, trace
from supernet.costs import count_macs, count_parameters
from supernet.families.family import Family
from supernet.families.traced.kept_sizes import keep_sizes
from supernet.skeleton import build_skeleton, copy_to
from supernet.space import Arch, SearchSpace


def narrowed(
    space: str = "mobilenet_v3_micro",
    options: str = "{}",
    arch: Mapping[str, Any] | None = None,
    channels: Mapping[str, int] | None = None,
    *,
    num_classes: int = 10,
    in_chans: int = 3,
) -> Family:
    """The family whose one architecture is the subnet `arch` of a `space` of this package, by default its largest, with
    as many of the `channels` of its layers as are given, by the names that `supernet.channels.trace` gives them.

    `options` are those of the space, a JSON object. Channels that a residual ties become fewer together.

    ValueError for a space that is not of this package, or for channels that the subnet does not have.
    """
    from supernet.families import FAMILIES

    if space not in FAMILIES:
        raise ValueError(f"channels are taken away from subnets of a space of this package, not of {space!r}")
    family = FAMILIES[space](num_classes=num_classes, in_chans=in_chans, **json.loads(options))
    return narrow_family(family, arch, channels)


def narrow_family(
    family: Family, arch: Mapping[str, Any] | None = None, channels: Mapping[str, int] | None = None
) -> Family:
    """The family whose one architecture is the subnet `arch` of `family`, by default its largest, with as many of the
    `channels` of its layers as are given; ValueError for channels that the subnet does not have."""
    whole = family.space.largest if arch is None else family.space.validate(arch)
    sizes = _sizes(family, whole, channels or {})
    build = partial(_build, family, whole, sizes)
    skeleton = build_skeleton(build, None)
    example = family.example(whole)
    return Family(
        space=SearchSpace({"resolution": (family.resolution(whole),)}),
        build=build,
        num_classes=family.num_classes,
        in_chans=family.in_chans,
        macs=partial(_constant, count_macs(skeleton, example)),
        parameters=partial(_constant, count_parameters(skeleton)),
        paper=family.paper,
        task=family.task,
    )


def _sizes(family: Family, arch: Arch, channels: Mapping[str, int]) -> dict[Channels, int]:
    if not channels:
        return {}
    skeleton = copy_to(build_skeleton(family.build, arch), torch.device("meta"))
    found = {group.name: group for group in trace(skeleton, *family.example(arch)).channels}
    for name, size in channels.items():
        if name not in found or not 1 <= size <= found[name].size:
            most = f"1 to {found[name].size}" if name in found else "none that can become fewer"
            raise ValueError(f"the channels of {name} are {most}, not {size}")
    return {found[name]: size for name, size in channels.items()}


def _build(
    family: Family, arch: Arch, sizes: Mapping[Channels, int], _: Arch | None = None, **rates: float
) -> nn.Module:
    return keep_sizes(family.build(arch, **rates), lambda model: narrow(model, sizes))


def _constant(value: int, arch: Arch) -> int:
    return value
