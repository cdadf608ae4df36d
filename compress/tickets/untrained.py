"""Masks that are found before any training, from one batch, and controls of masks that are found by training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from compress.tickets.masks import Scope, highest, weights_of
from compress.tickets.saliency import grasp, snip, synflow
from distill.temporary import batch_statistics
from distill.untouched import untouched

# N images

SCORES: dict[str, Callable[[nn.Module, Tensor, Tensor], dict[str, Tensor]]] = {
    "snip": snip,
    "grasp": grasp,
    "synflow": synflow,
    "magnitude": lambda model, images, labels: {name: w.detach().abs() for name, w in weights_of(model).items()},
}
ROUNDS = {"synflow": 100}  # as published; one for the others


def mask_before_training(
    method: str,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    density: float,
    scope: Scope = "global",
    *,
    rounds: int | None = None,
) -> dict[str, Tensor]:
    """Masks by the scores `method` of the weights of `model`, which was not trained: snip, grasp, synflow or magnitude.

    `images` [N, ...] and `labels` [N] are one batch. In `rounds` rounds, by default those of the papers, the density
    falls by the same factor, and scores are computed anew without what was pruned. `model` stays as it is. ValueError
    for another method.
    """
    if method not in SCORES:
        raise ValueError(f"masks before training are by {', '.join(SCORES)}, not {method!r}")
    rounds = rounds or ROUNDS.get(method, 1)
    pruned, masks = copy.deepcopy(model), None
    names = list(weights_of(model))
    for number in range(1, rounds + 1):
        with batch_statistics(pruned):
            scores = untouched(partial(SCORES[method], pruned), images, labels)
        masks = highest({name: scores[name] for name in names}, density ** (number / rounds), scope, masks)
        for name, mask in masks.items():
            pruned.get_parameter(name).data.mul_(mask)
    return masks


def shuffled(masks: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Masks that keep as many entries of each tensor, at random places."""
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=generator).to(mask.device)].view(mask.shape)
        for name, mask in masks.items()
    }
