"""Masks that keep whole channels, heads of attention or neurons, which are what a smaller network can leave out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from compress.tickets.masks import Scope, highest
from supernet.channels import Channels


def channel_masks(
    model: nn.Module,
    channels: Sequence[Channels],
    scores: Mapping[str, Tensor],
    density: float,
    scope: Scope = "global",
) -> dict[str, Tensor]:
    """Masks on the weights of `model`, True where they are of one of the `channels` that are kept: of the highest
    `scores`, [O] by the channels' name, as many as `compress.tickets.masks.highest` keeps at `density`.

    Masked are matrices and kernels alone, of all layers that put a channel out or take it in: a channel that is gone
    gives nothing, whatever its bias is. Of channels of several kinds a density counts each once, a head like a neuron.
    ValueError as `highest`, and for channels without scores.
    """
    if missing := [group.name for group in channels if group.name not in scores]:
        raise ValueError(f"the channels {missing[0]!r} have no scores")
    kept = highest({group.name: scores[group.name] for group in channels}, density, scope)
    masks: dict[str, Tensor] = {}
    for group in channels:
        for name, dim, blocks in group.members:
            weight = model.get_parameter(name)
            if weight.dim() < 2:
                continue
            own = kept[group.name].repeat_interleave(group.each).repeat(blocks)
            shape = [-1 if d == dim else 1 for d in range(weight.dim())]
            masks[name] = masks.get(name, torch.ones_like(weight, dtype=torch.bool)) & own.view(shape)
    return masks
