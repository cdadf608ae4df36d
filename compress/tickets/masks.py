"""Which weights are kept: the highest of their scores, as many as a density says, of all layers or of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compress.transforms import Mask, transformed

# N entries of all tensors together, or of one

Scope = Literal["global", "layer"]


def weights_of(model: nn.Module, exclude: Collection[str] = ()) -> dict[str, nn.Parameter]:
    """The weights of convolutions and linear layers by name, a shared one under its first name, but for those of the
    layers `exclude`, by name. ValueError if a name of these is no such layer, or there is no weight."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _ConvNd | nn.Linear)}
    if unknown := set(exclude) - layers.keys():
        raise ValueError(
            f"{min(unknown)!r} is no convolution or linear layer of the {type(model).__name__}: its layers are "
            f"{', '.join(layers) or 'none'}"
        )
    names = {f"{name}.weight".removeprefix(".") for name in layers.keys() - set(exclude)}
    found = {name: parameter for name, parameter in model.named_parameters() if name in names}
    if not found:
        raise ValueError(f"the {type(model).__name__} has no weights of convolutions or linear layers to prune")
    return found


def highest(
    scores: Mapping[str, Tensor],
    density: float | Mapping[str, float],
    scope: Scope = "global",
    within: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Masks, True for the round(density N) highest `scores` of N: of all tensors together ("global"), or of each
    ("layer"), where `density` may be one for each.

    Of equal scores the first ones are kept, in the order of the tensors and of their entries. What `within` does not
    keep is not kept, and N counts it nevertheless. Global scores may keep nothing of some tensor. ValueError for a
    density that is not from 0 to 1, and for scores that are NaN.
    """
    if scope not in ("global", "layer"):
        raise ValueError(f"masks are of the scope 'global' or 'layer', not {scope!r}")
    if scope == "layer":
        each = density if isinstance(density, Mapping) else dict.fromkeys(scores, density)
        own = {name: within and {name: within[name]} for name in scores}
        return {name: highest({name: scores[name]}, each[name], "global", own[name])[name] for name in scores}
    if isinstance(density, Mapping):
        raise ValueError("densities of each layer need the scope 'layer'")
    if not 0 <= density <= 1:
        raise ValueError(f"a density is a part of the weights, from 0 to 1, not {density}")
    flat = torch.cat([tensor.detach().flatten() for tensor in scores.values()])
    if flat.isnan().any():
        raise ValueError("a score is NaN: the network has diverged")
    allowed = torch.ones_like(flat, dtype=torch.bool)
    if within is not None:
        allowed = torch.cat([within[name].to(flat.device).flatten() for name in scores])
    order = torch.sort(torch.where(allowed, flat, -torch.inf), descending=True, stable=True).indices
    kept = torch.zeros_like(allowed)
    kept[order[: round(density * len(flat))]] = True
    parts = (kept & allowed).split([tensor.numel() for tensor in scores.values()])
    return {name: part.view(tensor.shape) for (name, tensor), part in zip(scores.items(), parts)}


def magnitude_mask(
    tensors: Mapping[str, Tensor],
    fraction: float | Mapping[str, float],
    scope: Scope = "global",
    within: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Masks, False for the `fraction` of entries whose magnitude is lowest: `highest` magnitudes at a density of
    1 - fraction."""
    each = isinstance(fraction, Mapping)
    density = {name: 1 - part for name, part in fraction.items()} if each else 1 - fraction
    return highest({name: tensor.detach().abs() for name, tensor in tensors.items()}, density, scope, within)


def masked(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """`model`, in place, with these masks on its weights; `compress.transforms.fold` makes it plain."""
    return transformed(model, {name: Mask(kept) for name, kept in masks.items()})


def density_of(masks: Mapping[str, Tensor]) -> float:
    """The part of the entries of all masks together that is kept."""
    return sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
