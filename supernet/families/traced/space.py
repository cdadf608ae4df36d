"""The choices of a model whose channels and residual blocks are known, and the model that an architecture means."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from timm.layers import make_divisible
from torch import Tensor, nn

from supernet.channels import Call, Trace, narrow, trace_on
from supernet.errors import first_line
from supernet.families.traced.kept_sizes import keep_sizes
from supernet.space import Arch, Choice, SearchSpace


@dataclass(frozen=True)
class Elastic:
    """What of a model may vary."""

    found: Trace
    width: Sequence[float]  # fractions
    depth: Sequence[float]

    def space(self, left_out: Iterable[str] = ()) -> SearchSpace | None:
        """All choices but those left out; None if none is left."""
        choices: dict[str, Choice] = {}

        def declare(name: str, layer: str, values: Iterable[int]) -> None:
            """A choice that applies where the layer is there."""
            if len(values := sorted(set(values))) > 1 and name not in left_out:
                needs = {stage: index for stage, index in needed(self.found, layer) if stage in choices}
                when = {stage: [d for d in choices[stage].values if d > index] for stage, index in needs.items()}
                choices[name] = Choice(values, {s: ds for s, ds in when.items() if len(ds) < len(choices[s].values)})

        for name, places in self.found.removable.items():
            kept, length = min(places.values()), max(places.values()) + 1
            depths = (max(kept, math.ceil(length * fraction)) for fraction in self.depth)
            declare(join(name, "depth"), name, depths)
        for group in self.found.channels:
            divisor = math.gcd(group.size, 8)
            while divisor > 1 and 4 * divisor > group.size:
                divisor //= 2
            sizes = (make_divisible(group.size * fraction, divisor) for fraction in self.width)
            declare(join(group.name, "width"), group.name, sizes)
        return SearchSpace(choices) if choices else None

    def reduce(self, model: nn.Module, arch: Arch) -> nn.Module:
        """Take the blocks and channels that `arch` does without from `model`, in place; returns `model`."""
        return keep_sizes(model, partial(self._reduce, arch))

    def _reduce(self, arch: Arch, model: nn.Module) -> nn.Module:
        for stage in self.found.removable:
            if (length := arch.get(join(stage, "depth"))) is not None:
                blocks = model.get_submodule(stage)
                for block in list(blocks._modules)[length:]:
                    delattr(blocks, block)  # `del blocks[length:]` would number those that have names
        sizes = {group: arch.get(join(group.name, "width")) for group in self.found.channels}
        return narrow(model, {group: size for group, size in sizes.items() if size is not None})


class Running(NamedTuple):
    """The choices with which a model runs."""

    space: SearchSpace | None  # None if the model runs with no choice
    left_out: Mapping[str, str]  # choices with which the model does not run, and how it fails
    macs: Mapping[Arch, int]  # counted while running


def running_space(elastic: Elastic, model: nn.Module, example: Tensor) -> Running:
    """The space of the choices with which `model` runs, on the device of `example`.

    The smallest architecture and a random one are run. If one fails, the choices that make it fail are found by
    bisection and left out, so that they stay what they are in the largest, and all others can vary. A model runs if its
    forward raises nothing, and if every module calls the functions that it calls in the largest, which give tensors of
    the shapes that follow from the channels.
    """
    left_out: dict[str, str] = {}
    while (space := elastic.space(left_out)) is not None:
        counted: dict[Arch, int] = {}
        for arch in (space.smallest, space.sample(np.random.default_rng(0))):
            outcome = _run(elastic, model, arch, example)
            if isinstance(outcome, str):
                failure = partial(_failure, elastic, model, example, left_out, space, arch)
                left_out.update(_failing(space.choices, failure))
                break
            counted[arch] = outcome
        else:
            return Running(space, left_out, counted)
    return Running(None, left_out, {})


def needed(found: Trace, layer: str) -> list[tuple[str, int]]:
    """The choices of depth that `layer` depends on, and the index of its block: the depth has to be larger."""
    needs = []
    for stage, places in found.removable.items():
        prefix = f"{stage}." if stage else ""
        block = layer.removeprefix(prefix).partition(".")[0]
        if layer.startswith(prefix) and layer != stage and block in places:
            needs.append((join(stage, "depth"), places[block]))
    return needs


def join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _failing(names: Iterable[str], failure: Callable[[Sequence[str]], str | None]) -> dict[str, str]:
    """The choices that have to be left out for the others not to fail, and how they failed.

    Choices of one kind, the same in all blocks, are left out together: one alone may run where it fails with another,
    or only because its number happens to agree with another's. Kinds are tried in halves, and halves of these.
    """
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    good: list[str] = []
    failing: dict[str, str] = {}

    def divide(candidates: Sequence[Sequence[str]]) -> None:
        together = list(itertools.chain(*candidates))
        error = failure([*good, *together])
        if error is None:
            good.extend(together)
        elif len(candidates) == 1:
            failing.update(dict.fromkeys(together, error))
        else:
            divide(candidates[: len(candidates) // 2])
            divide(candidates[len(candidates) // 2 :])

    divide(list(kinds.values()))
    return failing


def _failure(
    elastic: Elastic,
    model: nn.Module,
    example: Tensor,
    left_out: Iterable[str],
    space: SearchSpace,
    arch: Arch,
    some: Iterable[str],
) -> str | None:
    """How the model fails if only `some` choices of the space differ, as in `arch`, from the largest; None if it does
    not."""
    smaller = elastic.space({*left_out, *space.choices} - set(some))
    values = {name: arch.get(name, choice.values[-1]) for name, choice in smaller.choices.items()}
    outcome = _run(elastic, model, smaller.validate(values), example)
    return outcome if isinstance(outcome, str) else None


def _run(elastic: Elastic, model: nn.Module, arch: Arch, example: Tensor) -> int | str:
    """The MACs of the model of an architecture for one image, or why it does not run."""
    try:
        smaller = elastic.reduce(copy.deepcopy(model), arch)
        with torch.no_grad(), example.device:
            seen = trace_on(example, smaller, example.device)
    except Exception as error:  # whatever code raises that is not made for other sizes
        return first_line(error)
    widths = {group.name: arch.get(join(group.name, "width"), group.size) for group in elastic.found.channels}
    for name, calls in seen.calls.items():
        if smaller.get_submodule(name)._modules.keys() == model.get_submodule(name)._modules.keys():
            expected = elastic.found.calls.get(name, calls)
            if [call.function for call in calls] != [call.function for call in expected]:
                return f"{name or type(model).__name__} calls other functions"
            for call, whole in zip(calls, expected):
                if (given := _shapes(call, {})) != (wanted := _shapes(whole, widths)):
                    return f"`{call.function}` in {name or type(model).__name__} gives {given}, not {wanted}"
    return seen.macs


def _shapes(call: Call, widths: Mapping[str, int]) -> str:
    """Of what a call gives where there are so many channels."""
    return ", ".join(str([extent.size(widths) for extent in extents]) for extents in call.results)
