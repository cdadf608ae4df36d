"""Networks that train side by side, and the companions that each is trained with, as one for the loop."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from distill.accompanied import Beside, Companions, companions_of
from distill.layers import recorded
from supernet.space import Arch
from supernet.tasks import Task
from supernet.tasks.task import Output
from supernet.training.data import Data
from supernet.training.data.batch import Batch, on, take
from supernet.training.randomness import Stream, part_seed


class Cohort(nn.ModuleList):
    """Networks that train side by side, as one for the optimizer, the moving average and checkpoints."""

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not to decay, as timm's models tell theirs."""
        own = [getattr(network, "no_weight_decay", set)() for network in self]
        return {f"{index}.{name}" for index, names in enumerate(own) for name in names}


class Accompanied(Cohort):
    """What is trained, a network or a `Cohort`, and the companions of each network."""

    def __init__(self, net: nn.Module, companions: Sequence[nn.Module]) -> None:
        super().__init__([net, nn.ModuleList(companions)])


def members(net: nn.Module) -> list[nn.Module]:
    """The networks to use of what a loop trained."""
    if isinstance(net, Accompanied):
        net = net[0]
    return list(net) if isinstance(net, Cohort) else [net]


def new_companions(
    beside: Beside,
    networks: Sequence[nn.Module],
    archs: Sequence[Arch | None],
    task: Task,
    data: Data,
    resolution: int | None,
    seed: int,
    teacher: nn.Module | None,
    of_subnets: bool = False,
) -> list[Companions]:
    """Those of each network, with weights that follow from `seed` alone; the inputs of `task`, which gives them to the
    `archs`, are of two held-out examples at `resolution`. `of_subnets` is as in `companions_of`."""
    batch = on(torch.device("cpu"), next(take(data.evaluation_batches(data.holdout, resolution), 2)))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(part_seed(seed, Stream.COMPANIONS))
        return [
            companions_of(
                beside,
                network,
                task.inputs(batch, arch),
                teacher,
                second_classes=len(data.second_classes),
                of_subnets=of_subnets,
            )
            for network, arch in zip(networks, archs)
        ]


class Seen:
    """What the companions of a supernet see of the networks of a step; of all of them what teaches others is kept.

    `temperature` is that of self-distillation.
    """

    def __init__(self, companions: Companions | None, teaching: Set[Hashable], temperature: float) -> None:
        self._companions, self._teaching, self._temperature = companions, teaching, temperature
        self._features: dict[Hashable, Mapping[str, Tensor]] = {}

    @contextmanager
    def of(self, network: Hashable, module: Callable[[], nn.Module]) -> Iterator[None]:
        """Within the context, what companions see of `module()` is kept as that of `network`; layers that it lacks, as
        of a subnet without a stage, are left out."""
        if self._companions is None:
            yield
            return
        found = module()
        there = {name for name, _ in found.named_modules()}
        wanted = self._companions.student_layers | self._companions.teacher_layers
        with recorded(found, wanted & there) as self._features[network]:
            yield

    def forget(self, network: Hashable) -> None:
        """Keep nothing of a network that has learnt and teaches no other."""
        if network not in self._teaching:
            self._features.pop(network, None)

    def loss(self, network: Hashable, teacher: Hashable, output: Output, task: Task, batch: Batch) -> Tensor:
        """The weighted sum of what companions add to the loss of `network`, which answers `output`."""
        companions, own = self._companions, self._features[network]
        taught = None if teacher is None else self._features.get(teacher)
        second = batch[2] if companions.beside.second_task else None
        found = companions.losses(output, partial(task.loss, batch=batch), own, taught, second, self._temperature)
        return sum((getattr(companions.beside, name) * loss for name, loss in found.items()), torch.zeros(()))
