"""Frozen networks to learn from, whatever size of images and normalisation they were trained with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.fx
from torch import Tensor, nn

from supernet.artifacts.runs import load_run
from supernet.artifacts.subnet import check_classes, load_network, take_out
from supernet.training.data import DataConfig, resize

# N images, C channels, R resolution in pixels


def load_teacher(
    name: str | Path,
    data: DataConfig,
    classes: Sequence[str],
    weights: str | Path | None = None,
    input_size: int | None = None,
    *,
    by_logits: bool = True,
    space: str | None = None,
    dataset: str | None = None,
) -> nn.Module:
    """A frozen network in eval mode that takes images [N, C, R, R] normalised as `data` says.

    It is the largest subnet of the finished training run in the folder `name`, its BatchNorm recalibrated, or else the
    network that `supernet.artifacts.subnet.load_network` gives for the same arguments. `space` says the space of a
    folder again, and `dataset` the dataset of a run, if these are code of one's own. The network resizes and normalises
    images to what it was trained with, which all that it computes inside follows from.

    ValueError if it tells other classes apart than `classes`, or the same in another order, unless `by_logits` is
    false, so that it teaches by what it computes inside; and if what is in a folder is for images of another size than
    `input_size`, where that is said.
    """
    if (Path(name) / "supernet.safetensors").exists():
        if weights is not None:
            raise ValueError(f"the run in {name} has weights of its own; leave out {weights}")
        run = load_run(Path(name), space=space, dataset=dataset)
        model, config = take_out(run, run.family.space.largest)
    else:
        model, config = load_network(name, data, classes, weights, input_size, space=space)
    if by_logits:
        check_classes(f"the teacher {name}", config.classes, classes)
    if config.input_size is None:
        raise ValueError(f"the teacher {name} takes no images, but {', '.join(config.input_names)}")
    if input_size not in (None, config.input_size[-1]):
        raise ValueError(f"the teacher {name} is for images of {config.input_size[-1]} pixels, not {input_size}")
    return prepared(model.eval(), data, config.input_size[-1], config.mean, config.std)


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
