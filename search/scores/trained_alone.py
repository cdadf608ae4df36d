"""The score of an architecture that is trained by itself, without the rest of the space."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from supernet.evaluation import evaluate
from supernet.families import Family
from supernet.space import Arch
from supernet.training.cohort import train_models
from supernet.training.data import Data, ImageData
from supernet.training.execution import Execution
from supernet.training.loop.config import LoopConfig
from supernet.training.standalone import model_settings


def alone_settings(config: LoopConfig, epochs: int) -> LoopConfig:
    """How an architecture trains alone for so many `epochs`, otherwise as its supernet did; its warm-up is a quarter of
    them at most."""
    settings = model_settings(config)
    return dataclasses.replace(settings, epochs=epochs, warmup_epochs=min(settings.warmup_epochs, epochs / 4))


class TrainedAlone:
    """The score "the first metric on held-out examples after a training alone", from fresh weights of the seed of
    `config`; higher is better, NaN if an output is not finite."""

    def __init__(self, family: Family, data: Data, config: LoopConfig, directory: Path, execution: Execution) -> None:
        if isinstance(data, ImageData):
            data = dataclasses.replace(data, workers=0)  # a worker has its CPUs for all
        self._family, self._data, self._config = family, data, config
        self._directory, self._execution = directory, execution

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
        (trained,) = train_models(
            [model],
            [resolution],
            self._data,
            config,
            self._directory / "-".join(map(str, family.space.encode([arch])[0])),
            task=family.task,
            execution=self._execution,
            resume=True,
        )
        metrics = evaluate(trained, family.task, self._data.evaluation_batches(self._data.holdout, resolution), arch)
        return next(iter(metrics.values()))
