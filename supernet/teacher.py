"""Frozen networks to learn from, whatever size of images and normalisation they were trained with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from supernet.data import DataConfig, resize
from supernet.subnet import load_network

# N images, C channels, R resolution in pixels


def load_teacher(
    name: str | Path,
    data: DataConfig,
    classes: Sequence[str],
    weights: str | Path | None = None,
    input_size: int | None = None,
) -> nn.Module:
    """A frozen network in eval mode that takes images [N, C, R, R] normalised as `data` says.

    It is that of `supernet.subnet.load_network` with the same arguments, resizes and normalises images to what it was
    trained with, and may teach by its logits only if it has the same classes.
    """
    model, config = load_network(name, data, classes, weights, input_size)
    if len(config.classes) == len(classes) and Path(name).is_dir() and config.classes != tuple(classes):
        raise ValueError(f"the teacher in {name} tells other classes apart: {', '.join(config.classes[:5])}, ...")
    return prepared(model, data, config.input_size[-1], config.mean, config.std)


def prepared(
    model: nn.Module, data: DataConfig, resolution: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> nn.Module:
    """`model`, frozen, to take images normalised as `data` says: (x * data.std + data.mean - mean) / std, resized to
    `resolution`."""
    own_mean, own_std, other_mean, other_std = (
        torch.tensor(v).view(-1, 1, 1) for v in (mean, std, data.mean, data.std)
    )
    scale, shift = other_std / own_std, (other_mean - own_mean) / own_std
    same = torch.equal(scale, torch.ones_like(scale)) and torch.equal(shift, torch.zeros_like(shift))

    def prepare(module: nn.Module, args: tuple[Tensor]) -> Tensor:
        images = resize(args[0], resolution)
        return images if same else images * scale.to(images) + shift.to(images)

    model.register_forward_pre_hook(prepare)
    return model.requires_grad_(False)
