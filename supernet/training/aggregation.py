"""A teacher whose layers are aggregated before a model learns from them (`distill.aggregation`)."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, Subset

from distill.aggregation import (
    AggregatedTeacher,
    Example,
    Group,
    average_weights,
    groups_of,
    last_weights,
    search_weights,
)
from supernet.artifacts.atomic import write_json
from supernet.skeleton import copy_to
from supernet.tasks import Classification
from supernet.training import distributed
from supernet.training.data import ImageData
from supernet.training.data.batch import on
from supernet.training.execution import pick_device
from supernet.training.loop.config import LoopConfig
from supernet.training.randomness import Stream, generator

logger = logging.getLogger(__name__)

Aggregation = Literal["last", "average", "random", "searched"]
FILE = "aggregation.json"


def aggregated(
    teacher: nn.Module,
    student: nn.Module,
    data: ImageData,
    config: LoopConfig,
    resolution: int,
    how: Aggregation,
    epochs: int,
    directory: Path,
    device: str = "auto",
) -> AggregatedTeacher:
    """`teacher` with a mixture of each of its groups of layers, for images of `resolution` pixels a side.

    `last` takes the last layer alone, `average` all alike, `random` weights drawn from the seed. `searched` searches
    them group by group, each by a student that starts as `student` does, on one half of the training images, and judges
    by the other half, for so many `epochs` of a half. What was found of a group is in `aggregation.json` in
    `directory`, and not searched again. ValueError for a stream of images, whose halves are unknown, and as
    `distill.aggregation.groups_of` raises it.
    """
    device = pick_device(device)
    teacher = teacher.to(device).eval()
    images = next(iter(data.evaluation_batches(data.holdout, resolution)))[0][:2]
    groups = groups_of(student, teacher, (on(device, images),))
    if how == "searched":

        def search() -> list[list[float]]:
            known = _read(directory / FILE, epochs)
            for group in groups[len(known) :]:
                known.append(_searched(teacher, student, group, data, config, resolution, epochs, device).tolist())
                _write(directory / FILE, epochs, groups, known)
            return known

        weights = list(map(torch.tensor, distributed.from_first(search)))
    elif how == "random":
        draw = generator(config.seed, Stream.COMPANIONS)
        weights = [torch.from_numpy(draw.dirichlet([1.0] * len(group.teacher))).float() for group in groups]
    else:
        weights = [(last_weights if how == "last" else average_weights)(group) for group in groups]
    for group, found in zip(groups, weights):
        logger.info("%s learns from %s", group.student, _said(group, found))
    return AggregatedTeacher(teacher, groups, weights).to(device)


def _read(path: Path, epochs: int) -> list[list[float]]:
    """The weights of the groups whose search has ended; none of a search of other length."""
    content = json.loads(path.read_text()) if path.exists() else {}
    return [group["weights"] for group in content["groups"]] if content.get("epochs") == epochs else []


def _write(path: Path, epochs: int, groups: Sequence[Group], weights: Sequence[list[float]]) -> None:
    content = [{**group._asdict(), "weights": found} for group, found in zip(groups, weights)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"epochs": epochs, "groups": content})


def _searched(
    teacher: nn.Module,
    student: nn.Module,
    group: Group,
    data: ImageData,
    config: LoopConfig,
    resolution: int,
    epochs: int,
    device: torch.device,
) -> Tensor:
    if isinstance(data.train, IterableDataset):
        raise ValueError("a stream of images cannot be halved: search the weights of layers on images in files")
    order = generator(config.seed, Stream.COMPANIONS, 1).permutation(len(data.train)).tolist()
    task = Classification(data.num_classes, label_smoothing=config.label_smoothing)

    def examples(half: list[int]) -> Iterator[Example]:
        part = dataclasses.replace(data, train=Subset(data.train, half), second=None)
        size = min(config.batch_size, len(half))
        steps = range(epochs * part.steps_per_epoch(size))
        for batch in part.training_batches(resolution, size, config.seed, steps):
            placed = on(device, batch)
            yield task.inputs(placed, None), partial(_loss, task, placed)

    halves = order[: len(order) // 2], order[len(order) // 2 :]
    copied = copy_to(student, device)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)
        return search_weights(copied, teacher, group, *map(examples, halves)).cpu()


def _loss(task: Classification, batch: tuple[Tensor, Tensor], output: Tensor) -> Tensor:
    return task.loss(output.float(), batch)


def _said(group: Group, weights: Tensor) -> str:
    return " + ".join(f"{weight:.2f} {name}" for name, weight in zip(group.teacher, weights.tolist()))
