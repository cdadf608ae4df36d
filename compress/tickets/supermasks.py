"""Masks that make a network of weights that were never trained answer better than chance.

By what a training did to the weights (Zhou et al., *Deconstructing lottery tickets*, NeurIPS 2019, arXiv 1905.01067),
or by scores that are trained in the place of the weights (edge-popup: Ramanujan et al., *What's hidden in a
randomly weighted neural network?*, CVPR 2020, arXiv 1911.13299).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compress.tickets.masks import Scope, highest, weights_of
from compress.transforms import straight_through

CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # of a weight before and after training; highest is kept
    "large_final": lambda w, trained: trained.abs(),
    "small_final": lambda w, trained: -trained.abs(),
    "large_init": lambda w, trained: w.abs(),
    "small_init": lambda w, trained: -w.abs(),
    "large_init_large_final": lambda w, trained: torch.minimum(w.abs(), trained.abs()),
    "magnitude_increase": lambda w, trained: trained.abs() - w.abs(),
    "movement": lambda w, trained: (trained - w).abs(),
    "large_final_same_sign": lambda w, trained: (trained * w.sign()).clamp(min=0),
    "magnitude_increase_same_sign": lambda w, trained: torch.where(
        w * trained > 0, trained.abs() - w.abs(), -torch.inf
    ),
}


def supermask(
    criterion: str,
    initial: Mapping[str, Tensor],
    trained: Mapping[str, Tensor],
    density: float | Mapping[str, float],
    scope: Scope = "layer",
) -> dict[str, Tensor]:
    """Masks for the weights `initial`, by one of `CRITERIA` of them and of what a training made of them; ValueError for
    another criterion."""
    if criterion not in CRITERIA:
        raise ValueError(f"the criteria of supermasks are {', '.join(CRITERIA)}, not {criterion!r}")
    score = CRITERIA[criterion]
    return highest({name: score(w.detach(), trained[name].detach()) for name, w in initial.items()}, density, scope)


def popup(
    model: nn.Module,
    density: float,
    *,
    scores: Literal["random", "magnitude"] = "random",
    exclude: Collection[str] = (),
    generator: torch.Generator | None = None,
) -> nn.Module:
    """`model`, in place, with scores that are trained for the weights of its layers, and all its parameters frozen.

    A layer uses the round(density n) of its n weights whose scores are highest in magnitude, and the gradient passes
    straight through the choice: that of a score is that of the weight in use times the weight. Scores begin as
    uniformly distributed as torch's weights are (edge-popup), or in proportion to the magnitude of the
    weights, the largest of a layer being sqrt(6 / fan_in), which is for networks that were trained (HYDRA: Sehwag et
    al., NeurIPS 2020, arXiv 2002.10509). The scores are `parametrizations.NAME.original` within their
    modules; `compress.transforms.fold` makes plain weights, those not in use 0. `generator` draws them; without one
    the draw is always the same.
    """
    if not 0 < density <= 1:
        raise ValueError(f"a density is the part of the weights in use, above 0 to 1, not {density}")
    weights = weights_of(model, exclude)
    generator = generator or torch.Generator().manual_seed(0)
    model.requires_grad_(False)
    for name, weight in weights.items():
        fan_in = weight[0].numel()
        if scores == "random":
            initial = (2 * torch.rand(weight.shape, generator=generator) - 1) / math.sqrt(fan_in)
        else:
            initial = math.sqrt(6 / fan_in) * weight.detach() / weight.detach().abs().max()
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        chosen = Chosen(weight.detach().clone(), density)
        parametrize.register_parametrization(module, leaf, chosen)
        original = module.parametrizations[leaf].original
        original.data.copy_(initial)
        original.requires_grad_(True)
    return model


class Chosen(nn.Module):
    """The parametrization of a weight by scores: `weight` where the magnitude of its score is among the highest, 0
    elsewhere."""

    def __init__(self, weight: Tensor, density: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.density = density

    def forward(self, scores: Tensor) -> Tensor:
        magnitude = scores.abs()
        kept = highest({"": magnitude}, self.density)[""]
        return self.weight * straight_through(magnitude, kept.to(scores.dtype))
