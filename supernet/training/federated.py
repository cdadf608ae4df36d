"""Averaging what was trained apart: networks of several sizes, each a part of one supernet, on data that stay where
they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from supernet.supernet import Supernet


@dataclass(frozen=True)
class Update:
    """A subnet that a customer trained, as `Supernet.extract` gave it."""

    arch: Mapping[str, Any]
    model: nn.Module
    weight: float = 1.0
    """How much it counts, such as its number of examples."""
    held: Mapping[str, Tensor] = field(default_factory=dict)
    """By name of a parameter, True [shape of it] for the entries that count; all of the others do. Weights that are
    pruned do not, nor rows of a classifier for classes that the customer has no example of."""


@torch.no_grad()
def average(net: Supernet, updates: Iterable[Update]) -> None:
    """Put into every entry of the shared parameters, in place, its weighted mean over those of `updates` that hold it;
    entries that none holds stay.

        theta[e] = sum over k with e in k of weight_k theta_k[e]  /  sum over k with e in k of weight_k

    With subnets that are leading slices this is HeteroFL's server (Diao et al., arXiv 2010.01264, equation 3), with one
    architecture and masks LotteryFL's (Li et al., arXiv 2008.03371), with one architecture alone FedAvg's. BatchNorm's
    statistics are not averaged: each subnet needs its own (`supernet.evaluation.calibrated_subnet`).

    ValueError for a subnet whose weights are no entries of the supernet's but made from them, if a mask is of no such
    parameter or of another shape, and for a weight that is not above 0.
    """
    shared = dict(net.named_parameters())
    sums: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for update in updates:
        if not update.weight > 0:
            raise ValueError(f"an update counts with a weight above 0, not {update.weight}")
        tensors = {name: parameter.detach() for name, parameter in update.model.named_parameters()}
        for name, mask in update.held.items():
            if name not in tensors or mask.shape != tensors[name].shape:
                shape = list(tensors[name].shape) if name in tensors else "no such parameter"
                raise ValueError(f"the mask {name!r} has the shape {list(mask.shape)}, the subnet {shape}")
        sources = net.sources(update.arch)
        for name, tensor in tensors.items():
            counts = update.weight * update.held.get(name, torch.ones_like(tensor)).to(tensor)
            for totals, part in ((sums, counts * tensor), (weights, counts)):
                total = totals.setdefault(sources[name], torch.zeros_like(shared[sources[name]]))
                total += _placed(net, update.arch, name, sources[name], part.to(total))
    for name, weight in weights.items():
        shared[name].copy_(
            torch.where(weight > 0, sums[name] / weight.clamp(min=torch.finfo(weight.dtype).tiny), shared[name])
        )
    net.statistics_of = None


def _placed(net: Supernet, arch: Mapping[str, Any], name: str, source: str, part: Tensor) -> Tensor:
    """A tensor of the shared one's shape with `part` where the subnet's tensor `name` lies, and 0 elsewhere: what the
    slice is linear in, transposed. ValueError if that is no slice."""
    if name not in net.views(net.space.validate(arch)):
        with torch.enable_grad():
            whole = torch.zeros_like(net.get_parameter(source), requires_grad=True)
            (placed,) = torch.autograd.grad(net.part_of(whole, name, part.shape), whole, part)
        if torch.equal(net.part_of(placed, name, part.shape), part):
            return placed
    raise ValueError(f"{name!r} of {dict(arch)} is made from shared weights and is no slice of them: not averaged")
