"""Teacher Guided Architecture Search (P+TG, Bashivan, Tensen & DiCarlo, arXiv 1808.01405): performance after a little
training plus how much a network tells images apart in the way that a teacher does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from distill.blockwise import Teacher
from distill.rdm import dissimilarity, teacher_guidance
from distill.untouched import untouched
from search.prefix.pieces import cut
from search.problem import placed
from search.scores.accuracy import EvaluationImages, first_metric
from supernet.evaluation import CALIBRATION_BYTES, calibrated
from supernet.families import Family
from supernet.space import Arch
from supernet.supernet import Supernet
from supernet.tasks import Classification
from supernet.training.data import ImageData, resize
from supernet.training.data.batch import device_of, on, split
from supernet.training.execution import DEFAULT, Execution
from supernet.training.step import TrainConfig
from supernet.training.train import train

# N images, n images that are told apart, C channels, R resolution in pixels

# gives a plain module, its BatchNorm calibrated on the batches of images
MakeCandidate = Callable[[Arch, Iterable[Tensor]], nn.Module]


@dataclass(frozen=True)
class GuidanceConfig:
    """How candidates are compared with a teacher."""

    weight: float = 1.0
    """Weight of the teacher's guidance, which is from -1 to 1, beside the accuracy, which is from 0 to 1."""
    images: int = 128
    """Images that teacher and candidates tell apart: the first of those that judge."""
    method: Literal["pearson", "spearman"] = "pearson"
    """How matrices of dissimilarity are compared."""
    points: tuple[str, ...] = ()
    """Modules of the teacher that are compared; by default where timm takes features."""
    epochs: int = 0
    """Epochs that every candidate trains by itself; 0 takes the candidate from the trained supernet."""
    lr: float = 0.1
    """Learning rate of that training, for 256 images a step."""
    batch_size: int = 128
    """Images a step of that training."""

    def __post_init__(self):
        if self.images < 3 or self.epochs < 0 or self.batch_size < 1 or not self.lr > 0:
            raise ValueError(f"images are 3 or more, epochs 0 or more, batch_size and lr positive, not {self}")


class TeacherGuided:
    """The score P + weight * TG of a candidate: its accuracy plus `distill.rdm.teacher_guidance`, higher is better.

    The candidate's layers are all places in it that carry everything on (`search.prefix.pieces`); the teacher's are its
    points. `candidate(arch, batches)` gives the network, its BatchNorm calibrated on these batches of images,
    `images(resolution)` gives the images to calibrate by and those to judge by, of which the first `config.images` are
    told apart; the teacher sees them at `teacher_resolution`, once, in `prepare` or when it is first needed.
    """

    def __init__(
        self,
        candidate: MakeCandidate,
        images: Callable[[int], EvaluationImages],
        resolution: Callable[[Arch], int],
        teacher: Teacher,
        teacher_resolution: int,
        config: GuidanceConfig,
        batch_size: int = 250,
    ) -> None:
        self._candidate, self._images, self._resolution = candidate, images, resolution
        self._config, self._batch_size = config, batch_size
        self._teacher: Teacher | None = teacher  # until it has seen the images
        self._teacher_resolution = teacher_resolution
        self._matrices: list[Tensor] = []

    def to(self, device: torch.device | str) -> TeacherGuided:
        """Puts what gives the candidates, and the teacher if it is still needed, on `device`, in place."""
        self._candidate = placed(self._candidate, device)
        if self._teacher:
            self._teacher.model.to(device)
        return self

    def prepare(self) -> None:
        """Have the teacher see the images, unless it has."""
        if self._teacher:
            features = self._teacher(self._told_apart(self._teacher_resolution, self._teacher.model))
            self._matrices = [dissimilarity(own).cpu() for own in features]
            self._teacher = None

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        return [self._score(arch) for arch in archs]

    def each(self, archs: Sequence[Arch]) -> Iterator[tuple[int, float | Exception]]:
        """The index and the score of each architecture, or what scoring it raised, as soon as it is known."""
        for index, arch in enumerate(archs):
            try:
                yield index, self._score(arch)
            except Exception as error:
                yield index, error

    def calibrated(self, arch: Arch) -> nn.Module:
        """The candidate with BatchNorm statistics of its own, in eval mode."""
        size = self._resolution(arch)
        parts = split(self._images(size).calibration, self._batch_size)
        return self._candidate(arch, (resize(on(device_of(part), part), size) for part in parts)).eval()

    def performance(self, model: nn.Module, arch: Arch) -> float:
        """P: the accuracy of a calibrated candidate; NaN if a logit is not finite."""
        size = self._resolution(arch)
        _, images, labels = self._images(size)
        batches = (resize(on(_device(model), part), size) for part in split(images, self._batch_size))
        with torch.no_grad():
            logits = torch.cat([untouched(model, batch) for batch in batches])
        return first_metric(Classification(), logits, (None, labels))

    def guidance(self, model: nn.Module, arch: Arch) -> float:
        """TG of a calibrated candidate."""
        self.prepare()
        images = self._told_apart(self._resolution(arch), model)
        return guidance_of(model, images, self._matrices, self._config.method)

    def _told_apart(self, size: int, model: nn.Module) -> Tensor:
        """The images that networks are compared by, where `model` is."""
        first = split(self._images(size).images, self._config.images)[0]
        return resize(on(_device(model), first), size)

    def _score(self, arch: Arch) -> float:
        model = self.calibrated(arch)
        return self.performance(model, arch) + self._config.weight * self.guidance(model, arch)


def guidance_of(
    model: nn.Module, images: Tensor, teacher: Sequence[Tensor], method: Literal["pearson", "spearman"] = "pearson"
) -> float:
    """How well a plain module, in eval mode, tells `images` [n, C, R, R] apart as a teacher does.

    `teacher` are the teacher's matrices of dissimilarity [n, n] for the same images; see
    `distill.rdm.teacher_guidance`.
    """
    matrices = []
    with torch.no_grad():
        x = images.clone()
        for piece in cut(model):
            x = piece(x)
            if x.dim() > 1 and x[0].numel() > 1:
                matrices.append(dissimilarity(x).cpu())
    return teacher_guidance(matrices, teacher, method)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _on(net: Supernet, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    return (batch.to(_device(net)) for batch in batches)


class FromSupernet:
    """Candidates that are subnets of a trained supernet."""

    def __init__(self, net: Supernet, calibration_bytes: int = CALIBRATION_BYTES) -> None:
        self._net, self._calibration_bytes = net, calibration_bytes

    def to(self, device: torch.device | str) -> FromSupernet:
        self._net.to(device)
        return self

    def __call__(self, arch: Arch, batches: Iterable[Tensor]) -> nn.Module:
        return calibrated(self._net, arch, _on(self._net, batches), self._calibration_bytes)


class TrainedBriefly:
    """Candidates that train by themselves for some epochs: on their own, without the rest of the space.

    Each has a folder in `directory`, where its training goes on if it was stopped.
    """

    def __init__(
        self, family: Family, data: ImageData, config: TrainConfig, directory: Path, execution: Execution = DEFAULT
    ) -> None:
        self._family, self._data, self._config, self._directory = family, data, config, directory
        self._execution = execution

    def to(self, device: torch.device | str) -> TrainedBriefly:
        self._execution = dataclasses.replace(self._execution, device=str(device))
        return self

    def __call__(self, arch: Arch, batches: Iterable[Tensor]) -> nn.Module:
        alone = self._family.space.restrict({name: [value] for name, value in arch.items()})
        family = dataclasses.replace(self._family, space=alone)
        name = "-".join(map(str, self._family.space.encode([arch])[0]))
        start = family.supernet(self._config.seed, classes=self._data.classes, data=self._data)
        net = train(family, start, self._data, self._config, self._directory / name, self._execution, resume=True)
        return calibrated(net, arch, _on(net, batches), self._execution.calibration_bytes)


def brief_training(config: GuidanceConfig, seed: int) -> TrainConfig:
    """The training of a stand-alone candidate: SGD, a cosine schedule, its labels alone."""
    return TrainConfig(
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        weight_decay=1e-4,
        warmup_epochs=min(1.0, config.epochs / 4),
        method="spos",
        random_subnets=1,
        seed=seed,
    )
