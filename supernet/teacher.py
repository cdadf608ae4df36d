"""Frozen networks to learn from, whatever size of images and normalisation they were trained with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from supernet.data import DataConfig, resize
from supernet.families.timm_models import timm_model
from supernet.subnet import load_subnet

# N images, C channels, R resolution in pixels


def load_teacher(name: str | Path, data: DataConfig, num_classes: int, weights: str | Path | None = None) -> nn.Module:
    """A frozen network in eval mode that takes images [N, C, R, R] normalised as `data` says.

    `name` is the folder of a saved subnet, or a timm model. Of the latter, `weights` is a file for `num_classes`
    classes; without it the model comes with timm's pretrained weights and its own classes, so that it may teach by its
    logits only if these are the same ones. It resizes and normalises images to what it was trained with.
    ValueError if it cannot be read.
    """
    if Path(name).is_dir():
        if weights is not None:
            raise ValueError(f"the subnet in {name} has weights of its own; leave out {weights}")
        model, config = load_subnet(name)
        return prepared(model, data, config.input_size[-1], config.mean, config.std)
    known = timm_model(str(name), num_classes if weights is not None else None)
    mean, std = known.config["mean"], known.config["std"]
    if weights is not None:  # trained here, as far as one can tell
        mean, std = data.mean, data.std
    fixed = known.input_size if known.config.get("fixed_input_size") or weights is None else None
    return prepared(known.load(weights or True).eval(), data, fixed, mean, std)


def prepared(
    model: nn.Module, data: DataConfig, resolution: int | None, mean: tuple[float, ...], std: tuple[float, ...]
) -> nn.Module:
    """`model`, frozen, to take images normalised as `data` says: (x * data.std + data.mean - mean) / std, resized to
    `resolution` unless that is None."""
    own_mean, own_std, other_mean, other_std = (
        torch.tensor(v).view(-1, 1, 1) for v in (mean, std, data.mean, data.std)
    )
    scale, shift = other_std / own_std, (other_mean - own_mean) / own_std
    same = torch.equal(scale, torch.ones_like(scale)) and torch.equal(shift, torch.zeros_like(shift))

    def prepare(module: nn.Module, args: tuple[Tensor]) -> Tensor:
        images = args[0] if resolution is None else resize(args[0], resolution)
        return images if same else images * scale.to(images) + shift.to(images)

    model.register_forward_pre_hook(prepare)
    return model.requires_grad_(False)
