"""Subnets whose weights are refitted to do what the largest one does, from few images without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distill.refitting import Layer, refit
from supernet.calibration import Inputs
from supernet.evaluation import CALIBRATION_BYTES, calibrated
from supernet.space import Arch
from supernet.supernet import Supernet
from supernet.views import PLAIN


def refitted(
    net: Supernet,
    arch: Mapping[str, Any],
    batches: Iterable[Inputs],
    calibration_bytes: int = CALIBRATION_BYTES,
) -> nn.Module:
    """The subnet `arch` as a plain module in eval mode, its weights fitted layer by layer so that it computes what the
    largest subnet does on `batches` (`distill.refitting.refit`), each what both are called with: equal inputs, images
    of one resolution.

    For supernets that were not trained at their subnets, pruned pretrained models above all; a trained subnet has
    better weights of its own. Where the supernet's BatchNorm statistics are not right for the largest subnet, that is
    recalibrated on the batches first.
    """
    inputs = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    teacher = calibrated(net, net.space.largest, inputs, calibration_bytes)
    student = net.extract(arch)
    refit(student, teacher, inputs, kept_outputs(net, arch))
    return student


def kept_outputs(net: Supernet, arch: Mapping[str, Any]) -> dict[str, Tensor]:
    """For each convolution and linear layer that the subnet `arch` has in common with the largest: which of the
    largest's outputs are its own, indices [outputs].

    Left out are layers whose weights are a transform, or slices of a tensor of another name, in either of the two, and
    those that have a row which the largest has not.
    """
    rows_of = [_rows(net, net.space.validate(own)) for own in (arch, net.space.largest)]
    kept = {}
    for name in rows_of[0].keys() & rows_of[1].keys():
        own, whole = (rows[name] for rows in rows_of)
        places = {row: place for place, row in enumerate(whole)}
        if all(row in places for row in own):
            kept[name] = torch.tensor([places[row] for row in own])
    return kept


def _rows(net: Supernet, arch: Arch) -> dict[str, list[int]]:
    """By layer of a subnet: the rows of the shared weight that are its own."""
    sources, views, shared = net.sources(arch), net.views(arch), net.state_dict()
    rows = {}
    for layer, module in net.skeleton(arch).named_modules():
        name = f"{layer}.weight"
        if isinstance(module, Layer) and sources[name] == name and views.get(name, PLAIN) == PLAIN:
            whole = shared[name]
            numbers = torch.arange(len(whole)).view(-1, *[1] * (whole.dim() - 1)).to(whole).expand_as(whole)
            own = net.part_of(numbers, name, module.weight.shape).detach().flatten(1)
            if torch.equal(own, own[:, :1].round().expand_as(own)):
                rows[layer] = own[:, 0].long().tolist()
    return rows
