"""Ensembles as a family of one architecture each, so that they are saved, exported, measured and taught by like any
subnet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from distill.ensemble import Ensemble
from supernet.families.family import Family
from supernet.space import Arch, SearchSpace

MICRO = ({"space": "mobilenet_v3_micro"}, {"space": "mobilenet_v3_micro"})


def ensemble(members: Sequence[Mapping[str, Any]] = MICRO, *, num_classes: int = 10, in_chans: int = 3) -> Family:
    """The family whose one architecture is the weighted sum of its members' logits (`distill.ensemble.Ensemble`).

    A member is given by its `space`, one of this package, the space's `options` and an `arch`, by default the largest.

    ValueError for no members, a space that is not of this package, or members that take images of different sizes.
    """
    from supernet.families import FAMILIES

    parts: list[tuple[Family, Arch]] = []
    for member in members:
        if member.get("space") not in FAMILIES:
            raise ValueError(f"a member of an ensemble is of a space of this package, not of {member.get('space')!r}")
        family = FAMILIES[member["space"]](num_classes=num_classes, in_chans=in_chans, **member.get("options", {}))
        arch = family.space.validate(member["arch"]) if "arch" in member else family.space.largest
        parts.append((family, arch))
    sizes = sorted({family.resolution(arch) for family, arch in parts})
    if len(sizes) != 1:
        raise ValueError(f"the members of an ensemble take images of one size, not of {sizes} pixels")
    return Family(
        space=SearchSpace({"resolution": sizes}),
        build=partial(_build, parts),
        num_classes=num_classes,
        in_chans=in_chans,
        macs=partial(_macs, parts),
        parameters=partial(_parameters, parts),
        paper="arXiv 1903.06236",
    )


def _macs(parts: Sequence[tuple[Family, Arch]], arch: Arch) -> int:
    return sum(family.macs(own) for family, own in parts)


def _parameters(parts: Sequence[tuple[Family, Arch]], arch: Arch) -> int:
    return sum(family.parameters(own) for family, own in parts)


def _build(parts: Sequence[tuple[Family, Arch]], arch: Arch, **rates: float) -> nn.Module:
    return Ensemble(family.build(own, **rates) for family, own in parts)
