"""Sparse networks that grow before they are pruned: NeST (Dai, Yin and Jha, arXiv 1711.02017)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from compress.tickets.masks import density_of, highest, masked, weights_of
from compress.transforms import fold

Batch = TypeVar("Batch")
Masks = dict[str, Tensor]


@dataclass(frozen=True)
class GrowConfig:
    """How a network grows and is pruned. Densities are parts of the weights of convolutions and linear layers."""

    first: float = 0.02
    """Density to begin with, of each layer, at random places."""
    grown: float = 0.2
    """Density that it grows to, by one threshold for all layers."""
    last: float = 0.07
    """Density that it is then pruned to, by one threshold for all layers."""
    grow_rounds: int = 3
    """Rounds of growth, each followed by a training; the density grows by the same factor in each."""
    prune_rounds: int = 3
    """Rounds of pruning, each followed by a training; the density falls by the same factor in each."""

    def __post_init__(self):
        if not 0 < self.first <= self.grown <= 1 or not 0 < self.last <= self.grown:
            raise ValueError(
                "densities are above 0 to 1, and the one that a network grows to is the largest, not first "
                f"{self.first}, grown {self.grown} and last {self.last}"
            )
        if min(self.grow_rounds, self.prune_rounds) < 1:
            raise ValueError(f"rounds are at least 1, not {self.grow_rounds} and {self.prune_rounds}")


def grow_and_prune(
    model: nn.Module,
    config: GrowConfig,
    gradients: Callable[[nn.Module], Mapping[str, Tensor]],
    train: Callable[[nn.Module, Path], nn.Module],
    directory: Path,
    generator: torch.Generator,
) -> tuple[nn.Module, Masks]:
    """The network as it is at the end, plain and on the CPU, and its masks; `model` is used up.

    It begins with few weights, drawn by `generator`, and trains. In each round of growth those pruned weights come to
    life, at 0, whose `gradients` (such as `mean_gradients`) are largest in magnitude; in each round of pruning the
    weights of the least magnitude go. Nothing goes back to the beginning. Trainings are in the folders grow-0, grow-1,
    ... and prune-1, ... of `directory`.
    """
    scores = {name: torch.rand(weight.shape, generator=generator) for name, weight in weights_of(model).items()}
    masks = highest(scores, config.first, "layer")
    model = _trained(model, masks, train, directory / "grow-0")
    for number in range(1, config.grow_rounds + 1):
        density = config.first * (config.grown / config.first) ** (number / config.grow_rounds)
        masks = growth(gradients(model), masks, max(density, density_of(masks)))
        model = _trained(model, masks, train, directory / f"grow-{number}")
    for number in range(1, config.prune_rounds + 1):
        density = config.grown * (config.last / config.grown) ** (number / config.prune_rounds)
        magnitudes = {name: model.get_parameter(name).detach().abs() for name in masks}
        masks = highest(magnitudes, density, within=masks)
        model = _trained(model, masks, train, directory / f"prune-{number}")
    return model, masks


def mean_gradients(
    model: nn.Module, batches: Iterable[Batch], loss: Callable[[nn.Module, Batch], Tensor]
) -> dict[str, Tensor]:
    """The mean over `batches` of the gradients of `loss(model, batch)` by the weights of convolutions and linear layers
    of a plain `model`, also by those that are 0."""
    weights = weights_of(model)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    count = 0
    for count, batch in enumerate(batches, 1):  # noqa: B007
        for part, gradient in zip(total.values(), torch.autograd.grad(loss(model, batch), list(weights.values()))):
            part += gradient
    return {name: part / max(count, 1) for name, part in total.items()}


def growth(gradients: Mapping[str, Tensor], masks: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """`masks` with as many more weights as make the density of all together `density`: those that are pruned now whose
    gradients are largest in magnitude, and would lower the loss the most if they came to life (NeST).

    `gradients` are those of the weights in use, not of raw weights under a mask. ValueError for a density below that of
    the masks.
    """
    wanted = round(density * sum(mask.numel() for mask in masks.values()))
    kept = sum(int(mask.sum()) for mask in masks.values())
    if wanted < kept:
        raise ValueError(f"masks that keep {kept} weights do not grow to {wanted}: prune them by magnitude")
    total = sum(mask.numel() for mask in masks.values())
    pruned = {name: ~mask for name, mask in masks.items()}
    added = highest({name: g.abs() for name, g in gradients.items()}, (wanted - kept) / total, "global", pruned)
    return {name: mask | added[name] for name, mask in masks.items()}


def _trained(model: nn.Module, masks: Masks, train: Callable[[nn.Module, Path], nn.Module], folder: Path) -> nn.Module:
    return fold(train(masked(model, masks), folder)).cpu()
