"""SimCLR (Chen et al., ICML 2020, arXiv 2002.05709) for small photographs: features without labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supernet.space import Arch
from supernet.tasks import Task
from supernet.training.cohort import train_models
from supernet.training.data.batch import Batch
from supernet.training.data.tensors import TensorData
from supernet.training.execution import Execution
from supernet.training.loop.config import LoopConfig

# N images, C channels, R resolution in pixels, D features, Z their projection


def pretrain(
    backbone: nn.Module, images: Tensor, config: LoopConfig, folder: Path, execution: Execution, size: int = 64
) -> nn.Module:
    """`backbone`, which gives features [N, D], trained in place on normalised `images` [N, C, R, R] without labels."""
    width = backbone.num_features
    head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, size))  # thrown away
    batch = images, torch.zeros(len(images), dtype=torch.int64)
    data = TensorData(batch, batch, batch)
    network = nn.Sequential(backbone, head)
    train_models([network], [None], data, config, folder, task=TwoViews(), execution=execution, resume=True)
    return backbone.eval()


@dataclass(frozen=True)
class TwoViews(Task):
    """Two views of each image to projections [2 N, Z], those of an image N apart, by which each view finds the other
    among all of the batch (section 2.1, equation 1)."""

    temperature: float = 0.2

    input_names: ClassVar = ("images",)

    def inputs(self, batch: Batch, arch: Arch | None) -> tuple[Tensor]:
        images = batch[0]
        return (torch.cat([view(images), view(images)]),)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """The mean over views i of -log(exp(s_ij / t) / sum over k != i of exp(s_ik / t)), with the cosine s and the
        other view j of the same image."""
        z = F.normalize(output, dim=1)
        alike = (z @ z.T / self.temperature).fill_diagonal_(-torch.inf)
        return F.cross_entropy(alike, torch.arange(len(z), device=z.device).roll(len(z) // 2))

    def distil(self, output: Tensor, teacher_output: Tensor, batch: Batch) -> Tensor:
        raise ValueError("views have no teacher")

    def metrics(self, outputs: Iterable[Tensor], batches: Iterable[Batch]) -> dict[str, float]:
        raise ValueError("what features are worth shows by their neighbours, see `neighbours`")

    @property
    def uninformed_loss(self) -> float:
        return 10.0  # above log(2 N)


def view(images: Tensor, least: float = 0.25) -> Tensor:
    """A view of each of the normalised `images` [N, C, R, R]: a part of `least` to all of its area, or its mirror
    image, as large as the image; other brightness, contrast, saturation and weights of the colours; some in grey."""
    count = len(images)

    def drawn(low: float, high: float) -> Tensor:
        return torch.empty(count, device=images.device).uniform_(low, high)

    area, ratio = drawn(least, 1), drawn(-0.28, 0.28).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    mirror = torch.sign(drawn(-1, 1))
    theta = torch.zeros(count, 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 0, 2] = width * mirror, drawn(-1, 1) * (1 - width)
    theta[:, 1, 1], theta[:, 1, 2] = height, drawn(-1, 1) * (1 - height)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    found = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    def mixed(x: Tensor, y: Tensor, low: float, high: float) -> Tensor:
        return torch.lerp(y, x, drawn(low, high).view(-1, 1, 1, 1))

    found = mixed(found, found.mean((1, 2, 3), keepdim=True), 0.5, 1.5)  # contrast
    grey = found.mean(1, keepdim=True)
    saturation = drawn(0.5, 1.5).masked_fill(drawn(0, 1) < 0.2, 0).view(-1, 1, 1, 1)
    colours = torch.empty(count, images.shape[1], 1, 1, device=images.device).uniform_(0.8, 1.2)
    return torch.lerp(grey, found, saturation) * colours + drawn(-0.4, 0.4).view(-1, 1, 1, 1)


@torch.inference_mode()
def features(model: nn.Module, images: Tensor) -> Tensor:
    """[N, D], in eval mode."""
    return torch.cat([model.eval()(part) for part in images.split(500)])


def neighbours(known: Tensor, labels: Tensor, found: Tensor, count: int = 20) -> Tensor:
    """The label of each of the features `found` [M, D] that most of its nearest `count` in `known` [N, D] have, by the
    cosine [M]."""
    nearest = (F.normalize(found, dim=1) @ F.normalize(known, dim=1).T).topk(count, dim=1).indices
    return labels[nearest].mode(dim=1).values
