"""A saved subnet with fewer channels: which ones, within which limits, and as a subnet that is saved as well."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from compress.pruning.threshold import above_threshold, global_threshold
from supernet.artifacts.reading import parse_json
from supernet.artifacts.subnet import Subnet
from supernet.artifacts.subnet_config import SubnetConfig
from supernet.channels import Channels, narrow, trace
from supernet.channels.importance import order_channels
from supernet.costs import count_macs, count_parameters
from supernet.errors import Unattainable
from supernet.families import FAMILIES
from supernet.families.named import NARROWED
from supernet.families.traced.kept_sizes import keep_sizes
from supernet.skeleton import copy_to

Sizes = dict[str, int]  # how many channels are left, by the name of the channels


def elastic_channels(subnet: Subnet) -> list[Channels]:
    """The channels of `subnet` that may become fewer; ValueError if there are none."""
    found = trace(subnet.model, *subnet.config.example()).channels
    if not found:
        raise ValueError(f"the {type(subnet.model).__name__} has no channels that can become fewer")
    return list(found)


def sizes_within(
    scores: Mapping[str, Tensor], step: int, is_admissible: Callable[[Sizes], bool], why: str = "the limits"
) -> Sizes:
    """How many channels are left of each, by one threshold for the `scores` of all, comparable over layers: the lowest
    threshold that is admissible.

    Numbers are rounded up to multiples of `step`, where a layer has as many. Unattainable, a ValueError that names
    `why`, if not even the smallest ones are admissible.
    """

    def sizes(threshold: float) -> Sizes:
        counts = above_threshold(scores, threshold)
        return {name: min(len(scores[name]), -(-count // step) * step) for name, count in counts.items()}

    threshold = global_threshold(scores, lambda threshold: is_admissible(sizes(threshold)))
    if threshold is None:
        raise Unattainable(f"no threshold of importance meets {why}: loosen it, or search for a smaller subnet")
    return sizes(threshold)


def smaller(
    model: nn.Module, channels: list[Channels], sizes: Sizes, scores: Mapping[str, Tensor] = MappingProxyType({})
) -> nn.Module:
    """A copy of `model` with as many of its `channels` as `sizes` says: those of the highest `scores`, or the leading
    ones, which is enough to count and to time it."""
    copy = copy_to(model, torch.device("cpu")).eval()
    kept = {group: sizes[group.name] for group in channels if sizes.get(group.name, group.size) < group.size}
    return keep_sizes(order_channels(copy, kept, scores), lambda own: narrow(own, kept))


def pruned(subnet: Subnet, channels: list[Channels], sizes: Sizes, scores: Mapping[str, Tensor]) -> Subnet:
    """`subnet` as a copy with as many of its `channels` as `sizes` says, those of the highest `scores`.

    Its space is `supernet.families.traced.narrowed`, or that of code of one's own with the option `narrowed`.
    BatchNorm's shift of a channel that is gone is gone with it: recalibrate, or train on.
    """
    model = smaller(subnet.model, channels, sizes, scores)
    taken = {own.name: sizes[own.name] for own in channels if sizes.get(own.name, own.size) < own.size}
    return Subnet(model, narrowed_config(subnet.config, model, taken))


def narrowed_config(config: SubnetConfig, model: nn.Module, sizes: Mapping[str, int]) -> SubnetConfig:
    """That of `model`, which is the subnet of `config` with so many channels left as `sizes` says of those that became
    fewer. The space of code of one's own stays, so that it is said again as ever, with the option `narrowed`."""
    space, options = config.space, parse_json(config.space_options, dict)
    if space not in FAMILIES:
        former = options.get(NARROWED, {"arch": dict(config.arch), "channels": {}})
        options[NARROWED] = former | {"channels": former["channels"] | dict(sizes)}
    else:
        inner = {"space": space, "options": config.space_options, "arch": config.arch}
        space, options = "narrowed", {**inner, "channels": dict(sizes)}
    narrowed = dataclasses.replace(
        config,
        space=space,
        space_options=json.dumps(options),
        arch={"resolution": config.input_size[-1]},
        facts={"macs": count_macs(model, config.example()), "parameters": count_parameters(model)},
        space_sha256=config.space_sha256,
    )
    narrowed.family()
    return narrowed
