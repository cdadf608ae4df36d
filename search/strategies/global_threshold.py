"""Pruning as published, as a search: one threshold of importance for the channels of all layers.

Network slimming (Liu et al., ICCV 2017, arXiv 1708.06519) with |gamma|, and the same with other importances, which are
divided by their mean in each layer to be comparable. What it needs no evaluation for is where to prune.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from compress.pruning.threshold import above_threshold, global_threshold, quantile_threshold
from search.problem import Problem
from supernet.artifacts.runs import Job
from supernet.channels import trace
from supernet.channels.importance import AnyImportance, comparable_scores
from supernet.families import Family
from supernet.space import Arch, SearchSpace
from supernet.supernet import Supernet

STEPS = 20  # of the channels, those that each further architecture has fewer


def thresholded(
    problem: Problem,
    net: Supernet,
    family: Family,
    importance: AnyImportance,
    inputs: Iterable[tuple] = (),
) -> Iterator[Arch]:
    """Admissible architectures, the largest first: at the lowest threshold that meets all limits, and at higher ones,
    which drop another twentieth of all channels each.

    The widths of a layer are those of the space: a layer with a channel above the threshold too many for one has the
    next larger one, and none has fewer channels than its smallest. Choices that are no widths of channels have their
    largest value. By "activations" importance is judged on `inputs` of the largest subnet.

    ValueError if the space has no widths of channels, or if no threshold meets the limits.
    """
    scores = width_scores(problem.space, net, family, importance, inputs)

    def arch_at(threshold: float) -> Arch:
        return arch_of(problem.space, above_threshold(scores, threshold))

    def is_admissible(threshold: float) -> bool:
        return bool(problem.violation(problem.price([arch_at(threshold)]))[0] <= 1)

    lowest = global_threshold(scores, is_admissible)
    if lowest is None:
        limits = ", ".join(f"{name} <= {limit:g}" for name, limit in problem.limits.items())
        raise ValueError(
            f"no threshold of importance meets {limits}: the smallest widths of the space, at its full depth and "
            "resolution, do not; allow smaller widths, or search by another strategy"
        )
    higher = (quantile_threshold(scores, step / STEPS) for step in range(1, STEPS + 1))
    archs = dict.fromkeys(arch_at(threshold) for threshold in (lowest, *(t for t in higher if t > lowest)))
    yield from (arch for arch in archs if problem.violation(problem.price([arch]))[0] <= 1)


def width_scores(
    space: SearchSpace,
    net: Supernet,
    family: Family,
    importance: AnyImportance,
    inputs: Iterable[tuple] = (),
) -> dict[str, Tensor]:
    """The importance of the channels of each choice of width, by its name, comparable over all of them."""
    model = net.extract(space.largest).eval()
    groups = [
        group
        for group in trace(model, *family.example(space.largest)).channels
        if f"{group.name}.width" in space.choices
    ]
    if not groups:
        raise ValueError(
            "global_threshold needs the widths of single layers as choices, as the spaces timm and from_timm have "
            "them; search this space by another strategy"
        )
    return {f"{name}.width": score for name, score in comparable_scores(model, groups, importance, inputs).items()}


def arch_of(space: SearchSpace, counts: Mapping[str, int]) -> Arch:
    """The largest architecture with at least so many channels for each choice of width, and no more than the next value
    of it."""
    fitting = {}
    for name, count in counts.items():
        *smaller, largest = space.choices[name].values
        fitting[name] = [next((value for value in smaller if value >= count), largest)]
    return space.restrict(fitting).largest


def importance_of(job: Job) -> AnyImportance:
    """What the channels of the run's supernet were ordered by; L1 norms where nothing says."""
    return json.loads(job.space_options).get("importance", "l1")
