"""A supernet around a model that exists already: timm's, or one of your own.

Its layers' widths and its stages' depths become choices, `blocks.1.0.conv_pw.width` in channels and `blocks.1.depth` in
blocks, found by following a forward pass (`supernet.channels`). With pretrained weights and channels in the order of
their importance, searching the space for a model within a limit is structured pruning.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.layers import make_divisible
from torch import Tensor, nn

from supernet.channels import Channels, Trace, narrow, trace
from supernet.errors import first_line
from supernet.families.family import Family
from supernet.families.kept_sizes import keep_sizes
from supernet.families.timm_models import create_regularised, timm_model
from supernet.importance import Importance, order_channels
from supernet.plain import count_classes, plain
from supernet.skeleton import copy_to
from supernet.space import Arch, Choice, SearchSpace


def from_timm(
    name: str = "mobilenetv3_large_100",
    width: Sequence[float] = (0.5, 0.75, 1.0),
    depth: Sequence[float] = (0.5, 0.75, 1.0),
    *,
    pretrained: bool | str | os.PathLike = False,
    importance: Importance = "l1",
    num_classes: int | None = None,
    in_chans: int = 3,
    input_size: int | None = None,
    saved_config: Mapping[str, Any] | None = None,
) -> Family:
    """The family of the timm model `name` at fractions of its width and depth; the largest subnet is the model itself.

    `name` is what `timm.create_model` takes: a name, with or without the tag of its weights, `hf-hub:ID`, or
    `local-dir:PATH`. `pretrained` starts the supernet from its weights, or from those in a file; timm's loader adapts
    them to `num_classes` (the model's own if None) and `in_chans`. They are loaded when the supernet is made, not
    before, and their channels are ordered by `importance`, which leaves what the model computes unchanged. All but the
    classifier have to be of this model, see `timm_weights.load_pretrained`. Images are `input_size` pixels a side (the
    model's own if None). `saved_config` stands in for an ID or PATH in what is saved (`timm_models.self_contained`).

    Tested on MobileNetV2, V3 and V4, EfficientNet, ResNet, ConvNeXt and ViT; other models often work too. Attention
    keeps its heads, and layers whose channels are concatenated or grouped keep their width.

    ValueError for a name that timm does not know, a missing file, and a model with nothing to vary.
    """
    model = timm_model(name, num_classes, in_chans, input_size, saved_config)
    family = from_model(
        model.create,
        torch.empty(1, in_chans, model.input_size, model.input_size, device="meta"),
        width,
        depth,
        pretrained=partial(model.load, pretrained) if pretrained else None,
        importance=importance,
    )
    return replace(family, weights_classes=partial(model.classes, pretrained))


def from_model(
    create: Callable[..., nn.Module],
    example: Tensor,
    width: Sequence[float] = (0.5, 0.75, 1.0),
    depth: Sequence[float] = (0.5, 0.75, 1.0),
    *,
    pretrained: Callable[[], nn.Module] | None = None,
    importance: Importance = "l1",
) -> Family:
    """The family of the model that `create()` makes, at fractions of its width and depth.

    Every group of channels that may become fewer is a choice of its own, in multiples of 8 (of 4 below 32 channels, of
    2 below 16), and so is the length of every `nn.Sequential` that ends in residual blocks. `create` also takes
    `drop_rate` and `drop_path_rate` if the family's `build` is to. Of the `example` images [B, C, H, W] the shape alone
    matters. If given, `pretrained()` is the model with the weights that the supernet starts from, once its channels are
    ordered by `importance`.

    ValueError if nothing can vary, or if the model does not run once it is narrower.
    """
    for fractions, what in ((width, "width"), (depth, "depth")):
        if not fractions or list(fractions) != sorted(set(fractions)) or fractions[0] <= 0 or fractions[-1] != 1:
            raise ValueError(f"fractions of the {what} rise to 1, such as (0.5, 0.75, 1.0), not {fractions}")
    create = partial(_plain, create)
    with torch.device("meta"):
        model = copy_to(create(), torch.device("meta"))
    found = trace(model, example)
    lengths = {name: len(model.get_submodule(name)) for name in found.removable}
    space = _space(found, lengths, width, depth)
    build = partial(_build, found, create)
    try:
        with torch.device("meta"):
            output = copy_to(build(space.smallest), torch.device("meta")).eval()(example.to("meta"))
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{type(model).__name__} does not run with fewer channels or blocks ({first_line(error)}), as its forward "
            "depends on sizes in a way that is not followed; write a builder for it, as the other families have"
        ) from error
    elastic = [group for group in found.channels if _join(group.name, "width") in space.choices]
    terms = partial(_terms, found, space, dict(model.named_parameters()))
    return Family(
        space=space,
        build=build,
        macs=partial(_total, terms((layer.weight or layer.module, layer.macs) for layer in found.layers)),
        parameters=partial(_total, terms((name, 1) for name, _ in model.named_parameters())),
        num_classes=count_classes(output),
        in_chans=example.shape[1],
        input_size=example.shape[-1],
        weights=pretrained and partial(_weights, pretrained, elastic, importance),
    )


def _plain(create: Callable[..., nn.Module], **options: float) -> nn.Module:
    return plain(create(**options))


def _weights(
    pretrained: Callable[..., nn.Module], channels: Iterable[Channels], importance: Importance, **options: bool
) -> Mapping[str, Tensor]:
    return order_channels(pretrained(**options), channels, importance).state_dict()


def _space(found: Trace, lengths: Mapping[str, int], width: Sequence[float], depth: Sequence[float]) -> SearchSpace:
    choices: dict[str, Choice] = {}

    def declare(name: str, layer: str, values: Iterable[int]) -> None:
        """A choice that applies where the layer is there."""
        if len(values := sorted(set(values))) > 1:
            needs = {stage: index for stage, index in _needs(found, layer) if stage in choices}
            when = {stage: [d for d in choices[stage].values if d > index] for stage, index in needs.items()}
            choices[name] = Choice(values, {s: ds for s, ds in when.items() if len(ds) < len(choices[s].values)})

    for name, kept in found.removable.items():
        declare(_join(name, "depth"), name, (max(kept, math.ceil(lengths[name] * fraction)) for fraction in depth))
    for group in found.channels:
        divisor = math.gcd(group.size, 8)
        while divisor > 1 and 4 * divisor > group.size:
            divisor //= 2
        sizes = (make_divisible(group.size * fraction, divisor) for fraction in width)
        declare(_join(group.name, "width"), group.name, sizes)
    if not choices:
        raise ValueError(
            "this model has no width or depth that could vary; known to have are MobileNetV2, V3 and V4, EfficientNet, "
            "ResNet, ConvNeXt and ViT"
        )
    return SearchSpace(choices)


def _needs(found: Trace, layer: str) -> list[tuple[str, int]]:
    """The choices of depth that `layer` depends on, and the index of its block: the depth has to be larger."""
    needs = []
    for stage, kept in found.removable.items():
        prefix = f"{stage}." if stage else ""
        if layer.startswith(prefix) and layer != stage:
            index = layer.removeprefix(prefix).partition(".")[0]
            if index.isdigit() and int(index) >= kept:
                needs.append((_join(stage, "depth"), int(index)))
    return needs


def _build(
    found: Trace, create: Callable[..., nn.Module], arch: Arch, drop_rate: float = 0.0, drop_path_rate: float = 0.0
) -> nn.Module:
    return keep_sizes(create_regularised(create, drop_rate, drop_path_rate), partial(_reduce, found, arch))


def _reduce(found: Trace, arch: Arch, model: nn.Module) -> nn.Module:
    for stage in found.removable:
        if (length := arch.get(_join(stage, "depth"))) is not None:
            del model.get_submodule(stage)[length:]
    sizes = {group: arch.get(_join(group.name, "width")) for group in found.channels}
    return narrow(model, {group: size for group, size in sizes.items() if size is not None})


class _Term(NamedTuple):
    """A number for every combination of channels."""

    widths: tuple[str, ...]  # choices whose values are multiplied
    depths: tuple[tuple[str, int], ...]  # choices that have to be larger than the number


def _terms(
    found: Trace, space: SearchSpace, parameters: Mapping[str, Tensor], costs: Iterable[tuple[str, int]]
) -> Mapping[_Term, int]:
    """The sum of costs, each given with the name of a tensor, for every element of it, or with that of a module."""
    choice_of = {
        (name, dim): choice
        for group in found.channels
        if (choice := _join(group.name, "width")) in space.choices
        for name, dim in group.members
    }
    terms: Counter[_Term] = Counter()
    for name, cost in costs:
        shape = parameters[name].shape if name in parameters else ()
        widths = tuple(choice_of[name, dim] for dim in range(len(shape)) if (name, dim) in choice_of)
        fixed = math.prod(size for dim, size in enumerate(shape) if (name, dim) not in choice_of)
        depths = tuple(need for need in _needs(found, name) if need[0] in space.choices)
        terms[_Term(widths, depths)] += cost * fixed
    return terms


def _total(terms: Mapping[_Term, int], arch: Arch) -> int:
    return sum(
        cost * math.prod(map(arch.__getitem__, term.widths))
        for term, cost in terms.items()
        if all(arch.get(choice, 0) > index for choice, index in term.depths)
    )


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)
