"""MACs and parameters of a model whose channels and residual blocks are known, without building it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

from torch import Tensor

from supernet.channels import Channels, Trace
from supernet.families.traced.space import join, needed
from supernet.space import Arch, SearchSpace


class _Term(NamedTuple):
    """A number for every combination of channels."""

    widths: tuple[str, ...]  # choices whose values are multiplied
    depths: tuple[tuple[str, int], ...]  # choices that have to be larger than the number


def macs_formula(found: Trace, space: SearchSpace) -> Callable[[Arch], int]:
    """The MACs for one image: those of every call, which grow with the numbers of channels that it depends on."""
    return _formula(found, space, ((layer.module, layer.macs, layer.channels) for layer in found.layers))


def parameters_formula(found: Trace, space: SearchSpace, parameters: Mapping[str, Tensor]) -> Callable[[Arch], int]:
    """The number of all parameters."""
    channels: dict[str, list[Channels]] = {}
    for group in found.channels:
        for member in group.members:
            channels.setdefault(member.tensor, []).append(group)
    return _formula(found, space, ((name, t.numel(), channels.get(name, ())) for name, t in parameters.items()))


def _formula(
    found: Trace, space: SearchSpace, costs: Iterable[tuple[str, int, Iterable[Channels]]]
) -> Callable[[Arch], int]:
    """The sum of costs, each given with its place in the model, at full width, and with what it is proportional to."""
    terms: Counter[_Term] = Counter()
    for place, cost, channels in costs:
        elastic = [group for group in channels if join(group.name, "width") in space.choices]
        widths = tuple(sorted(join(group.name, "width") for group in elastic))
        depths = tuple(need for need in needed(found, place) if need[0] in space.choices)
        terms[_Term(widths, depths)] += cost // math.prod(group.size for group in elastic)
    return partial(_total, terms)


def _total(terms: Mapping[_Term, int], arch: Arch) -> int:
    return sum(
        cost * math.prod(map(arch.__getitem__, term.widths))
        for term, cost in terms.items()
        if all(arch.get(choice, 0) > index for choice, index in term.depths)
    )
