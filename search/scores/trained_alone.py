"""The score of an architecture that is trained by itself, without the rest of the space, perhaps by a teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from distill.objective import Objective
from supernet.artifacts.ownership import owned
from supernet.evaluation import evaluate
from supernet.families import Family
from supernet.space import Arch
from supernet.training.cohort import LABELS_ALONE, train_models
from supernet.training.data import Data, ImageData
from supernet.training.execution import Execution
from supernet.training.loop.config import LoopConfig
from supernet.training.standalone import model_settings


def alone_settings(config: LoopConfig, epochs: int) -> LoopConfig:
    """How an architecture trains alone for so many `epochs`, otherwise as its supernet did; its warm-up is a quarter of
    them at most."""
    settings = model_settings(config)
    return dataclasses.replace(settings, epochs=epochs, warmup_epochs=min(settings.warmup, epochs / 4))


@dataclass(frozen=True)
class AkdConfig:
    """How the score akd trains a student: what it chooses is best for these losses, to be trained by the same."""

    epochs: int = 5
    """Epochs of each student, otherwise as the run was trained."""
    labels: float = 0.5
    """Weight of the loss on the labels."""
    kl: float = 0.5
    """Weight of the KL divergence from the teacher's soft targets, times temperature squared."""
    temperature: float = 4.0
    """Temperature of these."""

    def __post_init__(self):
        if self.epochs < 1 or not self.kl > 0:
            raise ValueError(
                f"a student learns for at least 1 epoch, with a weight kl above 0, not {self.epochs} and {self.kl}"
            )
        _ = self.objective

    @property
    def objective(self) -> Objective:
        """The losses; ValueError for weights that are none."""
        return Objective(labels=self.labels, kl=self.kl, temperature=self.temperature)


class TrainedAlone:
    """The score "the first metric on held-out examples after a training alone", from fresh weights of the seed of
    `config`; higher is better, NaN if an output is not finite.

    With an `objective` that learns from `teacher`, a frozen network, this is the accuracy in the reward of AKD ("search
    to distill", Liu et al., CVPR 2020, arXiv 1911.09074), which distils each student briefly. Limits are the search's;
    the paper multiplies the reward by a power of the latency instead.

    Each architecture has a folder in `directory`, where its training goes on if it was stopped; who needs one that
    another process trains waits for it.
    """

    def __init__(
        self,
        family: Family,
        data: Data,
        config: LoopConfig,
        directory: Path,
        execution: Execution,
        objective: Objective = LABELS_ALONE,
        teacher: nn.Module | None = None,
    ) -> None:
        if isinstance(data, ImageData):
            data = dataclasses.replace(data, workers=0)  # a worker has its CPUs for all
        self._family, self._data, self._config = family, data, config
        self._directory, self._execution = directory, execution
        self._objective, self._teacher = objective, teacher

    def to(self, device: torch.device | str) -> TrainedAlone:
        """Has networks train on `device`, in place."""
        self._execution = dataclasses.replace(self._execution, device=str(device))
        return self

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        return [self._value(arch) for arch in archs]

    def each(self, archs: Sequence[Arch]) -> Iterator[tuple[int, float | Exception]]:
        """The index and the value of each architecture, or what its training raised, as soon as it is known."""
        for index, arch in enumerate(archs):
            try:
                yield index, self._value(arch)
            except Exception as error:
                yield index, error

    def _value(self, arch: Arch) -> float:
        family, config = self._family, self._config
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(config.seed)
            model = family.build(arch, drop_rate=config.drop_rate, drop_path_rate=config.drop_path_rate)
        resolution = family.resolution(arch)
        folder = self._directory / "-".join(map(str, family.space.encode([arch])[0]))
        with owned(folder, wait=True):
            (trained,) = train_models(
                [model],
                [resolution],
                self._data,
                config,
                folder,
                self._objective,
                self._teacher,
                task=family.task,
                execution=self._execution,
                resume=True,
            )
        metrics = evaluate(trained, family.task, self._data.evaluation_batches(self._data.holdout, resolution), arch)
        return next(iter(metrics.values()))
