"""Blockwise distillation (DNA, Li et al., CVPR 2020, arXiv 1911.13053): every block of a supernet learns, by itself, to
do what the block of a teacher does.

A block's input are the teacher's features before it and its target those behind it, so that no block needs another:
each can be trained by itself, and what one block's weights are worth does not depend on the others'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.layers import recorded, stages
from distill.untouched import untouched

# B batch, C channels, H height, W width, N tokens, K blocks

CONSTANT = 1e-12  # the variance of a target below which it is no target


@dataclass(frozen=True)
class BlockwiseConfig:
    """How blocks learn from a teacher. The paper: 20 epochs, Adam, a rate of 0.002 to 0.005 times 0.9 an epoch."""

    epochs: int = 20
    """Passes over the training images."""
    batch_size: int = 64
    """Images a step."""
    lr: float = 0.002
    """Learning rate of Adam in the first epoch."""
    decay: float = 0.9
    """Factor of the learning rate after every epoch."""
    weight_decay: float = 1e-4
    """L2 penalty of Adam."""

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
        if not self.lr > 0 or not 0 < self.decay <= 1:
            raise ValueError(f"lr is above 0 and decay from above 0 to 1, not {self.lr} and {self.decay}")


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

        ValueError if the network does not take the images, or never calls one of the modules.
        """
        try:
            with torch.no_grad(), recorded(self.model, self.points) as found:
                untouched(self.model, images)
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"the teacher does not take images of {list(images.shape[1:])}: {reason}") from error
        if idle := [point for point in self.points if point not in found]:
            raise ValueError(f"the teacher never calls its module {idle[0]!r}")
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


class Student(Protocol):
    """A block of a supernet: `block(x, path, accumulate=True)` runs a path, whose gradients land in its parameters."""

    space: Any  # its `sample(generator)` draws a path

    def __call__(self, x: Tensor, path: Any, *, accumulate: bool) -> Tensor: ...

    def parameters(self) -> Any: ...


class BlockTrainer:
    """Trains some of the blocks, by their positions; which are together in one trainer makes no difference.

    Every step trains one uniform path of each block, drawn from the seed, the block and the step.
    """

    def __init__(
        self, students: Mapping[int, Student], config: BlockwiseConfig, steps_per_epoch: int, seed: int = 0
    ) -> None:
        self.students = dict(students)
        self._seed = seed
        self._steps_per_epoch = steps_per_epoch
        self._config = config
        self._optimizers = {
            block: torch.optim.Adam(student.parameters(), config.lr, weight_decay=config.weight_decay)
            for block, student in students.items()
        }

    def step(self, features: Sequence[Tensor], step: int) -> dict[int, float]:
        """Train every block on one batch; the `relative_error` of each, which is for the caller to check.

        `features` [K + 1] are the images and the teacher's features: the block k goes from the k-th to the next.
        """
        losses = {}
        for block, student in self.students.items():
            path = student.space.sample(np.random.default_rng([self._seed, block, step]))
            optimizer = self._optimizers[block]
            for group in optimizer.param_groups:
                group["lr"] = self._config.lr * self._config.decay ** (step // self._steps_per_epoch)
            student.train()
            loss = relative_error(student(features[block], path, accumulate=True), features[block + 1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[block] = loss.item()
        return losses

    def state(self) -> dict[str, dict[str, Any]]:
        """Weights and optimizers by block, as tensors and plain values."""
        return {
            str(block): {"net": student.state_dict(), "optimizer": self._optimizers[block].state_dict()}
            for block, student in self.students.items()
        }

    def load(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on from what `state` gave, of these blocks and perhaps others."""
        for block, student in self.students.items():
            student.load_state_dict(state[str(block)]["net"])
            self._optimizers[block].load_state_dict(state[str(block)]["optimizer"])
