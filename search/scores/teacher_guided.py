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
from search.prefix.pieces import carried, cut
from search.problem import placed
from search.scores.accuracy import EvaluationBatches, first_metric
from supernet.evaluation import CALIBRATION_BYTES, calibrated
from supernet.families import Family
from supernet.space import Arch
from supernet.supernet import Supernet
from supernet.tasks import Classification, Task
from supernet.tasks.task import in_float32
from supernet.training.data import Data
from supernet.training.data.batch import device_of, joined, on, split
from supernet.training.execution import DEFAULT, Execution
from supernet.training.step import TrainConfig
from supernet.training.train import train

# N images or other examples, n that are told apart, L length in tokens, D channels

# gives a plain module, its BatchNorm calibrated on what it is called with, batch by batch
MakeCandidate = Callable[[Arch, Iterable[tuple]], nn.Module]

CLASSIFICATION = Classification()


@dataclass(frozen=True)
class GuidanceConfig:
    """How candidates are compared with a teacher."""

    weight: float = 1.0
    """Weight of the teacher's guidance, which is from -1 to 1, beside the accuracy, which is from 0 to 1."""
    images: int = 128
    """Images, or other examples, that teacher and candidates tell apart: the first of those that judge."""
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
    """The score P + weight * TG of a candidate: the first metric of `task`, the accuracy where it tells classes apart,
    plus `distill.rdm.teacher_guidance`, higher is better.

    The candidate's layers are all places in it that carry everything on (`search.prefix.pieces`); the teacher's are its
    points. Of texts, a layer tells apart the means over their tokens. `candidate(arch, inputs)` gives the network, its
    BatchNorm calibrated on what it is called with, `batches(resolution)` gives the examples to calibrate by and those
    to judge by, of which the first `config.images` are told apart; the teacher sees them at `teacher_resolution`, once,
    in `prepare` or when it is first needed.
    """

    def __init__(
        self,
        candidate: MakeCandidate,
        batches: Callable[[int | None], EvaluationBatches],
        resolution: Callable[[Arch], int | None],
        teacher: Teacher,
        teacher_resolution: int | None,
        config: GuidanceConfig,
        batch_size: int = 250,
        task: Task = CLASSIFICATION,
    ) -> None:
        self._candidate, self._batches, self._resolution, self._task = candidate, batches, resolution, task
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
            inputs = self._told_apart(self._teacher_resolution, self._teacher.model, None)
            mask = self._task.mask(inputs)
            self._matrices = [dissimilarity(of_examples(own, mask)).cpu() for own in self._teacher(*inputs)]
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
        parts = split(self._batches(self._resolution(arch)).calibration, self._batch_size)
        return self._candidate(arch, (self._task.inputs(on(device_of(part), part), arch) for part in parts)).eval()

    def performance(self, model: nn.Module, arch: Arch) -> float:
        """P: the first metric of a calibrated candidate; NaN if an output is not finite."""
        batch = self._batches(self._resolution(arch)).evaluation
        parts = (self._task.inputs(on(_device(model), part), arch) for part in split(batch, self._batch_size))
        with torch.no_grad():
            output = joined([untouched(model, *inputs) for inputs in parts])
        return first_metric(self._task, in_float32(output), batch)

    def guidance(self, model: nn.Module, arch: Arch) -> float:
        """TG of a calibrated candidate."""
        self.prepare()
        inputs = self._told_apart(self._resolution(arch), model, arch)
        return guidance_of(model, inputs, self._matrices, self._config.method, self._task.mask(inputs))

    def _told_apart(self, size: int | None, model: nn.Module, arch: Arch | None) -> tuple:
        """What `model`, a subnet or the teacher, is called with for the examples that networks are compared by."""
        first = split(self._batches(size).evaluation, self._config.images)[0]
        return self._task.inputs(on(_device(model), first), arch)

    def _score(self, arch: Arch) -> float:
        model = self.calibrated(arch)
        return self.performance(model, arch) + self._config.weight * self.guidance(model, arch)


def guidance_of(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    teacher: Sequence[Tensor],
    method: Literal["pearson", "spearman"] = "pearson",
    mask: Tensor | None = None,
) -> float:
    """How well a plain module, in eval mode, tells n examples apart as a teacher does: images [n, C, R, R], or whatever
    `inputs` it is called with. A `mask` [n, L] says which of the features [n, L, D] mean something.

    `teacher` are the teacher's matrices of dissimilarity [n, n] for the same examples; see
    `distill.rdm.teacher_guidance`.
    """
    matrices = []
    with torch.no_grad():
        x = carried(*(given.clone() for given in inputs))
        for piece in cut(model, inputs=len(inputs)):
            x = piece(x)
            features = of_examples(x[0] if isinstance(x, tuple) else x, mask)
            if features.dim() > 1 and features[0].numel() > 1:
                matrices.append(dissimilarity(features).cpu())
    return teacher_guidance(matrices, teacher, method)


def of_examples(features: Tensor, mask: Tensor | None) -> Tensor:
    """What n examples are told apart by: of tokens [n, L, D] with a `mask` [n, L] the means over those that it is not 0
    for [n, D], other features as they are."""
    if mask is None or features.shape[:2] != mask.shape:
        return features
    weight = mask[..., None].to(features.dtype)
    return (features * weight).sum(1) / weight.sum(1).clamp(min=1)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _on(net: Supernet, batches: Iterable[tuple]) -> Iterator[tuple]:
    return (on(_device(net), inputs) for inputs in batches)


class FromSupernet:
    """Candidates that are subnets of a trained supernet."""

    def __init__(self, net: Supernet, calibration_bytes: int = CALIBRATION_BYTES) -> None:
        self._net, self._calibration_bytes = net, calibration_bytes

    def to(self, device: torch.device | str) -> FromSupernet:
        self._net.to(device)
        return self

    def __call__(self, arch: Arch, batches: Iterable[tuple]) -> nn.Module:
        return calibrated(self._net, arch, _on(self._net, batches), self._calibration_bytes)


class TrainedBriefly:
    """Candidates that train by themselves for some epochs: on their own, without the rest of the space.

    Each has a folder in `directory`, where its training goes on if it was stopped.
    """

    def __init__(
        self, family: Family, data: Data, config: TrainConfig, directory: Path, execution: Execution = DEFAULT
    ) -> None:
        self._family, self._data, self._config, self._directory = family, data, config, directory
        self._execution = execution

    def to(self, device: torch.device | str) -> TrainedBriefly:
        self._execution = dataclasses.replace(self._execution, device=str(device))
        return self

    def __call__(self, arch: Arch, batches: Iterable[tuple]) -> nn.Module:
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
