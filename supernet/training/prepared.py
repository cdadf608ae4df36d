"""Networks that are fed images as they want them, whatever the size and normalisation of those that they are given."""

from __future__ import annotations

from functools import partial

import torch
import torch.fx
from torch import Tensor, nn

from supernet.training.data import DataConfig, resize


def prepared(
    model: nn.Module, data: DataConfig, resolution: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> nn.Module:
    """`model`, frozen, to take images normalised as `data` says: (x * data.std + data.mean - mean) / std, resized to
    `resolution`."""
    data = data.normalised
    scale = tuple(other / own for other, own in zip(data.std, std, strict=True))
    shift = tuple((other - own) / by for other, own, by in zip(data.mean, mean, std, strict=True))
    model.register_forward_pre_hook(partial(_before, resolution, scale, shift))
    return model.requires_grad_(False)


def _before(
    resolution: int, scale: tuple[float, ...], shift: tuple[float, ...], module: nn.Module, args: tuple[Tensor]
) -> Tensor:
    return _prepare(args[0], resolution, scale, shift)


@torch.fx.wrap  # one step for those that cut a network into its steps
def _prepare(images: Tensor, resolution: int, scale: tuple[float, ...], shift: tuple[float, ...]) -> Tensor:
    images = resize(images, resolution)
    if set(scale) == {1.0} and set(shift) == {0.0}:
        return images
    factors, terms = (images.new_tensor(values).view(-1, 1, 1) for values in (scale, shift))
    return images * factors + terms
