"""The training step of a supernet, and its settings: gradients of several subnets on one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from distill.losses import adaptive_alpha_divergence, kl_divergence
from distill.untouched import untouched
from supernet.space import Arch
from supernet.supernet import Builder, Supernet
from supernet.training.data import resize
from supernet.training.loop import LoopConfig, autocast
from supernet.training.sampling import Path

# N images, C channels, R resolution in pixels, K classes

Call = Callable[[nn.Module, Mapping[str, Tensor], tuple[Tensor]], Tensor]
Distill = Callable[[Tensor, Tensor], Tensor]  # logits [N, K] of student and teacher -> loss


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """How a supernet is trained."""

    method: Literal["sandwich", "best_up", "worst_up", "spos", "fairnas", "cream", "progressive"] = "sandwich"
    """Which subnets a step trains: the largest, random ones and the smallest (BigNAS, AlphaNet), random ones picked by
    their loss (AttentiveNAS), random ones alone (SPOS), every operation equally often (FairNAS), a random one taught by
    the best so far (Cream), or ever smaller ones (Once-for-All), which a recipe with phases does."""
    random_subnets: int = 2
    """Random subnets a step, beside the largest and the smallest if the method has these; unused by fairnas."""
    trials: int = 3
    """Subnets of similar MACs that best_up and worst_up pick from."""
    macs_step: float = 25.0
    """How similar, in millions of MACs."""
    board_epoch: int = 20
    """Epoch, counted from 0, from which cream keeps the best paths, to teach others."""
    matching_steps: int = 200
    """Steps between updates of cream's learned choice of the teacher."""
    distillation: Literal["kl", "adaptive_alpha"] = "kl"
    """How subnets learn from the largest: KL divergence, or AlphaNet's adaptive alpha-divergence."""
    temperature: float = 1.0
    """Temperature of the KL divergence."""
    compile: bool = False
    """Compile the largest and the smallest subnet, which recur in a sandwich; takes minutes, pays in long trainings."""
    accumulation: int = 1
    """Equal parts of a batch that run one after another, to take less memory; BatchNorm sees a part at a time."""
    calibration_images: int | None = None
    """Training images that BatchNorm is recalibrated on before a subnet is evaluated; if None, 1000, or one a class if
    there are more classes."""
    eval_random: int = 2
    """Random subnets in an evaluation, always the same ones."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("accumulation", "calibration_images", "random_subnets", "trials"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
        if self.macs_step <= 0:
            raise ValueError(f"macs_step is above 0, not {self.macs_step}")
        if self.temperature <= 0 or (self.temperature != 1 and self.distillation != "kl"):
            raise ValueError(f"temperature is above 0, and 1 unless distillation is kl, not {self.temperature}")

    def images_to_calibrate(self, num_classes: int) -> int:
        """`calibration_images`, or what stands for None."""
        return self.calibration_images or max(1000, num_classes)


class Outcome(NamedTuple):
    """What came out of the paths of a step."""

    losses: Tensor  # [paths]
    logits: list[Tensor]  # [N, K] of each path, without gradient


@dataclass(frozen=True)
class TrainStep:
    """Gives `net` the gradients of a step: `train_step(images, labels, paths)`.

    `resolution` is that of an architecture's images, `regularised` builds the modules of paths with dropout, `teacher`
    is the frozen network of those that name an external one. `calls` say how architectures are run otherwise than by
    `functional_call`.
    """

    net: Supernet
    config: TrainConfig
    resolution: Callable[[Arch], int]
    regularised: Builder
    teacher: nn.Module | None = None
    calls: Mapping[Arch, Call] = field(default_factory=dict)

    def __call__(self, images: Tensor, labels: Tensor, paths: Sequence[Path]) -> Outcome:
        """Accumulate the gradients of all `paths` on a batch, `images` [N, C, R, R] and `labels` [N]: the mean over
        `config.accumulation` equal parts of it."""
        count = self.config.accumulation
        parts = [self._part(*part, paths) for part in zip(images.chunk(count), labels.chunk(count))]
        losses = torch.stack([part.losses for part in parts]).mean(0)
        return Outcome(losses, [torch.cat(logits) for logits in zip(*(part.logits for part in parts))])

    def _part(self, images: Tensor, labels: Tensor, paths: Sequence[Path]) -> Outcome:
        """The same on one of the parts. A path's soft labels are the very logits that gave its teacher a gradient."""
        config = self.config
        distill = distillation(config)
        external = None
        if any(path.teacher == "external" for path in paths):
            with torch.no_grad(), autocast(config, images.device):
                external = untouched(self.teacher, images).float()
        logits: list[Tensor] = []
        losses = []
        for path in paths:
            with torch.set_grad_enabled(path.learns):
                output = self.logits(path.arch, images, regularised=path.regularised, accumulate=path.learns)
            loss = output.new_zeros(())
            if path.label_weight:
                loss = path.label_weight * F.cross_entropy(output, labels, label_smoothing=config.label_smoothing)
            if path.teacher is not None and path.teacher_weight:
                soft_labels = external if path.teacher == "external" else logits[path.teacher]
                loss = loss + path.teacher_weight * distill(output, soft_labels)
            if path.learns:
                (loss / config.accumulation).backward()
            logits.append(output.detach())
            losses.append(loss.detach())
        return Outcome(torch.stack(losses), logits)

    def logits(self, arch: Arch, images: Tensor, *, regularised: bool = False, accumulate: bool = False) -> Tensor:
        """Those [N, K] of the subnet `arch` on `images`, which are resized to its resolution."""
        build = self.regularised if regularised else self.net.build
        call = self.calls.get(arch, functional_call)
        with autocast(self.config, images.device):
            output = self.net(resize(images, self.resolution(arch)), arch, build, accumulate=accumulate, call=call)
        return output.float()


def distillation(config: TrainConfig) -> Distill:
    """How a student learns from soft labels, as `config` says."""
    if config.distillation == "kl":
        return partial(kl_divergence, temperature=config.temperature)
    return adaptive_alpha_divergence
