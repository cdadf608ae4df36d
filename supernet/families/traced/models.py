"""A supernet around a model that exists already: timm's, or one of your own.

Its layers' widths and its stages' depths become choices, `blocks.1.0.conv_pw.width` in channels and `blocks.1.depth` in
blocks, found by following a forward pass (`supernet.channels`). With pretrained weights and channels in the order of
their importance, searching the space for a model within a limit is structured pruning.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from supernet.channels import Channels, Trace, slicing_rules, trace
from supernet.channels.importance import AnyImportance, activation_scores, order_channels
from supernet.families.family import Family
from supernet.families.timm_models import create_regularised, timm_model
from supernet.families.traced.costs import macs_formula, parameters_formula
from supernet.families.traced.space import Elastic, join, running_space
from supernet.plain import count_classes, plain
from supernet.skeleton import build_uninitialised, copy_to
from supernet.space import Arch
from supernet.supernet import Supernet

REASONS = 5  # that a message gives at most

_log = logging.getLogger(__name__)


def from_timm(
    name: str = "mobilenetv3_large_100",
    width: Sequence[float] = (0.5, 0.75, 1.0),
    depth: Sequence[float] = (0.5, 0.75, 1.0),
    *,
    pretrained: bool | str | os.PathLike = False,
    importance: AnyImportance = "l1",
    num_classes: int | None = None,
    in_chans: int = 3,
    input_size: int | None = None,
    saved_config: Mapping[str, Any] | None = None,
) -> Family:
    """The family of the timm model `name` at fractions of its width and depth; the largest subnet is the model itself.

    `name` is what `timm.create_model` takes: a name, with or without the tag of its weights, `hf-hub:ID`, or
    `local-dir:PATH`; or `torchvision/NAME`, for one of torchvision's. `pretrained` starts the supernet from its
    weights, or from those in a file; timm's loader adapts them to `num_classes` (the model's own if None) and
    `in_chans`. They are loaded when the supernet is made, not before, and their channels are ordered by `importance`,
    which leaves what the model computes unchanged; "activations", their average percentage of zeros, is on training
    images of the data that the supernet is made for. All but the classifier have to be of this model, see
    `timm_weights.load_pretrained`. Images are `input_size` pixels a side (the model's own if None). `saved_config`
    stands in for an ID or PATH in what is saved (`timm_models.self_contained`).

    Attention keeps its heads, and layers whose channels are concatenated with others keep their width. Channels that
    lie in equal blocks (a gate, a grouped convolution, a GroupNorm) vary within each block, all blocks alike.

    ValueError for a name that is not known, a missing file, and a model with nothing to vary.
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
    importance: AnyImportance = "l1",
) -> Family:
    """The family of the model that `create()` makes, at fractions of its width and depth.

    Every group of channels that may become fewer is a choice of its own, in multiples of 8 (of 4 below 32 channels, of
    2 below 16), and so is the length of every `nn.Sequential` and `nn.ModuleList` that ends in residual blocks. Choices
    with which the model does not run are left out. `create` also takes `drop_rate` and `drop_path_rate` if the family's
    `build` is to. Of the `example` images [B, C, H, H] the shape alone matters. If given, `pretrained()` is the model
    with the weights that the supernet starts from, once its channels are ordered by `importance`. A warning is logged
    where the smallest subnet keeps nearly all MACs, with what is fixed and why.

    ValueError if nothing can vary, or if the images are not square.
    """
    for fractions, what in ((width, "width"), (depth, "depth")):
        if not fractions or list(fractions) != sorted(set(fractions)) or fractions[0] <= 0 or fractions[-1] != 1:
            raise ValueError(f"fractions of the {what} rise to 1, such as (0.5, 0.75, 1.0), not {fractions}")
    if example.dim() != 4 or example.shape[-1] != example.shape[-2]:
        raise ValueError(f"a family's images are square, [B, C, H, H], not {list(example.shape)}")
    create = partial(_plain, create)
    with torch.device("meta"):
        model = copy_to(build_uninitialised(lambda _: create(), None), torch.device("meta"))
    found = trace(model, example)
    num_classes, device = count_classes(found.output), found.output.device
    model = copy_to(model, device).requires_grad_(False).eval()
    example = torch.zeros_like(example[:1], device=device)
    elastic = Elastic(found, width, depth)
    running = running_space(elastic, model, example)
    space, why = running.space, _reasons(found, running.left_out)
    if space is None:
        raise ValueError(
            f"{type(model).__name__} has no width or depth that could vary ({why or 'no layer is followed'}); write a "
            "builder for it, as the other families have"
        )
    macs = macs_formula(found, space)
    if any(macs(arch) != count for arch, count in {space.largest: found.macs, **running.macs}.items()):
        macs = None  # the family counts in a forward pass
    elastic_groups = [group for group in found.channels if join(group.name, "width") in space.choices]
    family = Family(
        space=space,
        build=partial(_build, elastic, create),
        macs=macs,
        parameters=parameters_formula(found, space, dict(model.named_parameters())),
        num_classes=num_classes,
        in_chans=example.shape[1],
        input_size=example.shape[-1],
        rules=slicing_rules(elastic_groups),
        weights=pretrained and partial(_weights, pretrained, elastic_groups, importance),
        order=partial(_order, elastic_groups) if importance == "activations" else None,
    )
    kept = family.macs(space.smallest) / max(family.macs(space.largest), 1)
    if kept >= 0.9:
        _log.warning(f"the smallest subnet of this {type(model).__name__} keeps {kept:.0%} of the MACs: {why}")
    return family


def _plain(create: Callable[..., nn.Module], **options: float) -> nn.Module:
    return plain(create(**options))


def _weights(
    pretrained: Callable[..., nn.Module],
    channels: Iterable[Channels],
    importance: AnyImportance,
    **options: bool,
) -> Mapping[str, Tensor]:
    model = pretrained(**options)
    return (model if importance == "activations" else order_channels(model, channels, importance)).state_dict()


def _order(channels: Iterable[Channels], net: Supernet, inputs: Iterable[tuple]) -> None:
    largest = net.extract(net.space.largest).eval()
    order_channels(net, channels, activation_scores(largest, channels, inputs))


def _build(
    elastic: Elastic, create: Callable[..., nn.Module], arch: Arch, drop_rate: float = 0.0, drop_path_rate: float = 0.0
) -> nn.Module:
    return elastic.reduce(create_regularised(create, drop_rate, drop_path_rate), arch)


def _reasons(found: Trace, left_out: Mapping[str, str]) -> str:
    """What is fixed and why, in short: every cause with its number of layers and the first of them."""
    causes: dict[str, list[str]] = {}
    for layer, function in found.fixed.items():
        causes.setdefault(f"by {function}", []).append(layer)
    for choice, error in left_out.items():
        causes.setdefault(f"since it does not run otherwise ({error})", []).append(choice)
    most = sorted(causes.items(), key=lambda item: -len(item[1]))[:REASONS]
    parts = [f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} {cause}" for cause, names in most]
    return f"fixed are {', '.join(parts)}" if parts else ""
