"""Blockwise distillation (DNA, Li et al., CVPR 2020, arXiv 1911.13053): every block of a supernet learns, by itself, to
do what the block of a teacher does.

A block's input are the teacher's features before it and its target those behind it, so that no block needs another:
each can be trained by itself, and what one block's weights are worth does not depend on the others'.
"""

from __future__ import annotations

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


def adapter(in_chs: int, out_chs: int) -> nn.Sequential:
    """The 1x1 convolution with BatchNorm that stands between features of different widths."""
    return nn.Sequential(nn.Conv2d(in_chs, out_chs, 1, bias=False), nn.BatchNorm2d(out_chs))


class Teacher:
    """A network whose features are asked for at several points, as maps [B, C, H, W] where they have positions.

    `points` are names of its modules, in the order of the computation; by default those of timm's `feature_info`, the
    last one at each resolution. Tokens [B, N, C] become maps of square shape, and maps [B, H, W, C] of timm's models
    are turned. ValueError for points that the network does not have, or none.
    """

    def __init__(self, model: nn.Module, points: Sequence[str] = ()) -> None:
        self.model = model.eval().requires_grad_(False)
        self.points = tuple(points) or tuple(stages(model).values())
        modules = dict(model.named_modules())
        if unknown := [point for point in self.points if point not in modules]:
            near = [name for name in modules if name.count(".") < 2 and name]
            raise ValueError(f"the teacher has no module {unknown[0]!r}; it has {', '.join(near[:40])}")

    def __call__(self, images: Tensor) -> list[Tensor]:
        """The features of `images` [B, C, H, W] at the points.

        ValueError if the network does not take the images, or if a module is never called or puts out several tensors.
        """
        try:
            with torch.no_grad(), recorded(self.model, self.points) as found:
                untouched(self.model, images)
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"the teacher does not take images of {list(images.shape[1:])}: {reason}") from error
        if idle := [point for point in self.points if point not in found]:
            raise ValueError(f"the teacher never calls its module {idle[0]!r}")
        if several := [point for point in self.points if not isinstance(found[point], Tensor)]:
            raise ValueError(f"the teacher's module {several[0]!r} puts out no single tensor: name other points")
        return [_as_map(found[point], self.model) for point in self.points]


def _as_map(features: Tensor, model: nn.Module) -> Tensor:
    if features.dim() == 4 and getattr(model, "output_fmt", "NCHW") == "NHWC":
        return features.permute(0, 3, 1, 2)
    if features.dim() == 3:
        patches = features[:, getattr(model, "num_prefix_tokens", 0) :]
        side = round(patches.shape[1] ** 0.5)
        if side**2 == patches.shape[1]:
            return patches.transpose(1, 2).unflatten(2, (side, side))
    return features
