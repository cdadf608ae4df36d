"""Images to classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.losses import adaptive_alpha_divergence, kl_divergence
from supernet.plain import count_classes
from supernet.space import Arch
from supernet.tasks.task import Task
from supernet.training.data import resize

# N images, C channels, R resolution in pixels, K classes

Labelled = tuple[Tensor, Tensor]  # images [N, C, R, R] and labels [N]


@dataclass(frozen=True)
class Classification(Task):
    """Images [N, C, R, R] with labels [N] below K; outputs are logits [N, K]. Their metric is the accuracy.

    The settings from `label_smoothing` on are those of `supernet.training.step.TrainConfig`, which train by them.
    """

    num_classes: int | None = None
    """K, if it is known, to check batches by."""
    in_chans: int | None = None
    """C, if it is known, to check batches by."""
    resolution: Callable[[Arch], int] | None = None
    """Pixels a side of an architecture's images. By default what its choice `resolution` says, and where it has none
    they are not resized."""
    label_smoothing: float = 0.1
    """Part of the true label's probability that is spread over all classes."""
    distillation: Literal["kl", "adaptive_alpha"] = "kl"
    """How a student learns from logits: KL divergence, or AlphaNet's adaptive alpha-divergence."""
    temperature: float = 1.0
    """Temperature of the KL divergence."""
    class_weights: tuple[float, ...] | None = None
    """Weight of each class in the loss [K], whose mean is by the weights of the labels; all alike by default."""

    input_names: ClassVar = ("images",)
    output_names: ClassVar = ("logits",)
    metric: ClassVar = "accuracy"

    @property
    def uninformed_loss(self) -> float:
        """log K, the loss of equal probabilities."""
        return math.log(max(self.num_classes or 2, 2))

    @property
    def chance(self) -> float | None:
        """1 / K."""
        return 1 / max(self.num_classes, 1) if self.num_classes is not None else None

    def inputs(self, batch: Labelled, arch: Arch | None) -> tuple[Tensor]:
        images = batch[0]
        if arch is None:
            return (images,)
        resolution = self.resolution(arch) if self.resolution else arch.get("resolution")
        return (images if resolution is None else resize(images, resolution),)

    def loss(self, output: Tensor, batch: Labelled) -> Tensor:
        """Cross-entropy with label smoothing, weighted by class; labels may be probabilities [N, K] of mixed images."""
        weights = None
        if self.class_weights is not None:
            weights = _on(output.device, self.class_weights).to(output.dtype)
        return F.cross_entropy(output, batch[1], weights, label_smoothing=self.label_smoothing)

    def validation_loss(self, output: Tensor, batch: Labelled) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(output, batch[1])

    def distil(self, output: Tensor, teacher_output: Tensor, batch: Labelled) -> Tensor:
        if self.distillation == "kl":
            return kl_divergence(output, teacher_output, self.temperature)
        return adaptive_alpha_divergence(output, teacher_output)

    def metrics(self, outputs: Iterable[Tensor], batches: Iterable[Labelled]) -> dict[str, float]:
        """`accuracy`: part of the images whose highest logit is that of their label, from 0 to 1."""
        correct = count = 0
        for logits, batch in zip(outputs, batches):
            right = self.per_example(logits, batch)
            correct += right.sum().item()
            count += len(right)
        return {"accuracy": correct / count}

    def per_example(self, output: Tensor, batch: Labelled) -> Tensor:
        """Whether the highest logit is that of the label."""
        return output.argmax(1) == batch[1]

    def check_batch(self, batch: Labelled) -> None:
        images, labels = batch[:2]
        if self.num_classes is not None and (labels.min() < 0 or labels.max() >= self.num_classes):
            raise ValueError(f"labels are {labels.min()} to {labels.max()}, but there are {self.num_classes} classes")
        if self.in_chans is not None and (
            images.dim() != 4 or images.shape[1] != self.in_chans or not images.is_floating_point()
        ):
            raise ValueError(
                f"a batch of images is {list(images.shape)} of {images.dtype}, but this space takes floating point "
                f"[N, {self.in_chans}, R, R]"
            )

    def check_output(self, output: object) -> None:
        """ValueError unless it is logits of K classes."""
        if (given := count_classes(output)) != self.num_classes:
            raise ValueError(f"the model gives logits of {given} classes, and its family says {self.num_classes}")


@lru_cache  # since to make it on a GPU is to wait for it
def _on(device: torch.device, values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, device=device)
