"""Blockwise distillation (DNA, Li et al., CVPR 2020, arXiv 1911.13053): every block of a supernet learns, by itself, to
do what the block of a teacher does.

A block's input are the teacher's features before it and its target those behind it, so that no block needs another:
each can be trained by itself, and what one block's weights are worth does not depend on the others'.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.layers import recorded, stages
from distill.untouched import untouched

# B batch, C channels, H height, W width, N tokens, K blocks

CONSTANT = 1e-12  # the variance of a target below which it is no target


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error in units of the target's variance: what a block is trained on.

    mean (s - t)^2 / var t over all elements, 1 for a student that answers the mean. Features of one shape; the teacher
    is detached. ValueError if shapes differ.
    """
    target = _target(student, teacher)
    return F.mse_loss(student.float(), target) / target.var().clamp(min=CONSTANT)


def relative_deviation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute error in units of the target's standard deviation: what a trained path is rated by.

    mean |s - t| / std t over all elements (the paper's relative L1 loss), lower is better. Features as above.
    """
    target = _target(student, teacher)
    return F.l1_loss(student.float(), target) / target.std().clamp(min=CONSTANT**0.5)


def _target(student: Tensor, teacher: Tensor) -> Tensor:
    if student.shape != teacher.shape:
        raise ValueError(f"the student's features are {list(student.shape)} and the teacher's {list(teacher.shape)}")
    return teacher.detach().float()


def counted(features: Tensor, mask: Tensor | None) -> Tensor:
    """Of features [B, N, C] of tokens those that `mask` [B, N] is not 0 for, [M, C]; all features where there is no
    mask."""
    return features if mask is None else features[mask.bool()]


def adapter(in_chs: int, out_chs: int, *, tokens: bool = False) -> OrderedDict[str, nn.Module]:
    """The layers that stand between features of different widths: of maps a 1x1 convolution with BatchNorm, of tokens
    a linear layer behind a LayerNorm."""
    layers = (
        (nn.LayerNorm(in_chs), nn.Linear(in_chs, out_chs))
        if tokens
        else (nn.Conv2d(in_chs, out_chs, 1, bias=False), nn.BatchNorm2d(out_chs))
    )
    return OrderedDict((str(place), layer) for place, layer in enumerate(layers))


def answer(in_chs: int, out_chs: int, *, tokens: bool = False) -> OrderedDict[str, nn.Module]:
    """The layers behind a block: an adapter, and a `Spread`. They begin by answering the mean, whatever comes in: the
    last weights of the adapter are 0.

    An adapter of random weights answers in a scale of its own, and is as bad as that is not the target's: an error of
    1 + r^2 for r times the target's deviation. Adam changes a scale by the learning rate a step at the most, so that
    this would take hundreds of steps to mend.
    """
    layers = adapter(in_chs, out_chs, tokens=tokens)
    for parameter in layers["1"].parameters():
        nn.init.zeros_(parameter)
    return OrderedDict([*layers.items(), ("spread", Spread(out_chs, tokens=tokens))])


class Spread(nn.Module):
    """x * std + mean: what a block answers, given in units of its target's deviation from the mean of each channel.

    Both are buffers, which are not learnt: 1 and 0, unless they are those that `spread` takes from a target.
    """

    def __init__(self, channels: int, *, tokens: bool = False) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels) if tokens else torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.std + self.mean


def spread(target: Tensor) -> dict[str, Tensor]:
    """The buffers of a `Spread` for targets like this: maps [B, C, H, W], or tokens [..., C]."""
    target = target.float()
    mean = target.mean((0, 2, 3))[:, None, None] if target.dim() == 4 else target.flatten(0, -2).mean(0)
    return {"mean": mean, "std": target.std()}


class Teacher:
    """A network whose features are asked for at several points: maps [B, C, H, W], tokens [B, N, C], or whatever else.

    `points` are names of its modules, in the order of the computation; by default those of timm's `feature_info`, the
    last one at each resolution. Features are as `arranged` has them; with `grids` the tokens of images become maps.
    ValueError for points that the network does not have, or none.
    """

    def __init__(self, model: nn.Module, points: Sequence[str] = (), *, grids: bool = True) -> None:
        self.model = model.eval().requires_grad_(False)
        self.grids = grids
        self.points = tuple(points) or tuple(stages(model).values())
        modules = dict(model.named_modules())
        if unknown := [point for point in self.points if point not in modules]:
            near = [name for name in modules if name.count(".") < 2 and name]
            raise ValueError(f"the teacher has no module {unknown[0]!r}; it has {', '.join(near[:40])}")

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The features at the points of images [B, C, H, W], or whatever else the network is called with.

        ValueError if the network does not take them, or if a module is never called or puts out several tensors.
        """
        try:
            with torch.no_grad(), recorded(self.model, self.points) as found:
                untouched(self.model, *inputs)
        except (RuntimeError, AssertionError, IndexError, TypeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            shapes = " and ".join(str(list(given.shape[1:])) for given in inputs)
            what = "images" if inputs[0].dim() == 4 else "inputs"
            raise ValueError(f"the teacher does not take {what} of {shapes}: {reason}") from error
        if idle := [point for point in self.points if point not in found]:
            raise ValueError(f"the teacher never calls its module {idle[0]!r}")
        if several := [point for point in self.points if not isinstance(found[point], Tensor)]:
            raise ValueError(f"the teacher's module {several[0]!r} puts out no single tensor: name other points")
        grids = self.grids and inputs[0].dim() == 4
        return [arranged(found[point], self.model, grids=grids) for point in self.points]


def arranged(features: Tensor, model: nn.Module, *, grids: bool) -> Tensor:
    """Features of timm's `model` as all networks have them.

    Maps [B, H, W, C] of such as have channels last become [B, C, H, W], and with `grids` tokens [B, P + H W, C] become
    square maps, without the P class tokens and registers. Others are as they are.
    """
    if features.dim() == 4 and getattr(model, "output_fmt", "NCHW") == "NHWC":
        return features.permute(0, 3, 1, 2)
    if features.dim() == 3 and grids:
        patches = features[:, getattr(model, "num_prefix_tokens", 0) :]
        side = math.isqrt(patches.shape[1])
        if side**2 == patches.shape[1]:
            return patches.transpose(1, 2).unflatten(2, (side, side))
    return features
