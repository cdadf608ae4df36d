"""Images without data: what a trained network's BatchNorm statistics remember of the images that it was trained on.

DeepInversion (Yin et al., CVPR 2020, arXiv 1912.08795) starts from noise x and descends by

    CE(teacher(x), labels) + tv * TV(x) + l2 * ||x||_2 + statistics * sum_l (||mean_l - m_l||_2 + ||var_l - v_l||_2)

where m_l and v_l are the running statistics of the teacher's BatchNorm layer l, mean_l and var_l those of its input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distill.temporary import hooks

# B batch, C channels, H height, W width


@dataclass(frozen=True)
class InversionConfig:
    """How images are found; the weights are those of the authors for CIFAR-10."""

    iterations: int = 2000
    """Steps of Adam on a batch."""
    lr: float = 0.05
    """Its learning rate."""
    statistics: float = 10.0
    """Weight of the BatchNorm statistics."""
    tv: float = 2.5e-5
    """Weight of the total variation."""
    l2: float = 0.0
    """Weight of the norm of the images."""
    jitter: int = 2
    """Pixels that images are shifted by at most, anew each step, in both directions."""
    flip: bool = True
    """Whether half of the steps see images mirrored: leave it out where the mirror image is another class."""

    def __post_init__(self):
        if self.iterations < 1 or not self.lr > 0 or self.jitter < 0 or min(self.statistics, self.tv, self.l2) < 0:
            raise ValueError(f"iterations is at least 1, lr above 0, and jitter and weights 0 or more, not {self}")


def invert(
    teacher: nn.Module,
    labels: Tensor,
    size: tuple[int, int, int],
    config: InversionConfig,
    generator: torch.Generator,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Tensor:
    """Images [B, C, H, W] that the teacher takes for `labels` [B]: of `size` [C, H, W], normalised as it wants them.

    The teacher is in eval mode, and its weights get no gradient. `generator` draws noise, shifts and mirror images, on
    the CPU. `on_step` is told the number of steps and the loss. ValueError for a teacher without BatchNorm that has
    running statistics, as transformers and networks with folded BatchNorm are.
    """
    if not list(_layers(teacher)):
        raise ValueError(f"{type(teacher).__name__} has no BatchNorm, whose statistics images could be found by")
    device = next(teacher.parameters()).device
    images = torch.randn(len(labels), *size, generator=generator).to(device).requires_grad_()
    optimizer = torch.optim.Adam([images], config.lr)
    labels = labels.to(device)
    for step in range(1, config.iterations + 1):
        shifts = torch.randint(-config.jitter, config.jitter + 1, (2,), generator=generator).tolist()
        seen = images.roll(shifts, (2, 3))
        if config.flip and torch.rand((), generator=generator) < 0.5:
            seen = seen.flip(3)
        with statistics_met(teacher) as distances:
            loss = F.cross_entropy(teacher(seen).float(), labels)
        loss = loss + config.statistics * torch.stack(distances).sum()
        loss = loss + config.tv * total_variation(seen) + config.l2 * seen.norm()
        (images.grad,) = torch.autograd.grad(loss, images)
        optimizer.step()
        on_step(step, loss.item())
    return images.detach()


def total_variation(images: Tensor) -> Tensor:
    """The sum over four directions, across, down and both diagonals, of the norm of the differences between
    neighbouring pixels of images [B, C, H, W]."""
    return torch.stack(
        [
            (images[..., :, :-1] - images[..., :, 1:]).norm(),
            (images[..., :-1, :] - images[..., 1:, :]).norm(),
            (images[..., :-1, :-1] - images[..., 1:, 1:]).norm(),
            (images[..., 1:, :-1] - images[..., :-1, 1:]).norm(),
        ]
    ).sum()


@contextmanager
def statistics_met(network: nn.Module) -> Iterator[list[Tensor]]:
    """Within the context, each BatchNorm layer that runs adds to the list how far its input is from what it was trained
    on: the distance of the means plus that of the variances."""
    distances: list[Tensor] = []

    def meet(layer: _BatchNorm, args: tuple[Tensor]) -> None:
        x = args[0].float()
        dims = [dim for dim in range(x.dim()) if dim != 1]
        mean, variance = x.mean(dims), x.var(dims, unbiased=False)
        distances.append((mean - layer.running_mean).norm() + (variance - layer.running_var).norm())

    with hooks(layer.register_forward_pre_hook(meet) for layer in _layers(network)):
        yield distances


def _layers(network: nn.Module) -> Iterator[_BatchNorm]:
    layers = (module for module in network.modules() if isinstance(module, _BatchNorm))
    return (layer for layer in layers if layer.running_mean is not None)
