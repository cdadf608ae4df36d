"""The training step of a supernet, and its settings: gradients of several subnets on one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor, nn

from distill.accompanied import Companions
from distill.untouched import untouched
from supernet.conditions import only_where
from supernet.families import Family
from supernet.space import Arch
from supernet.subnets import Arrived
from supernet.supernet import NO_DROP, DropRates, StandIn, Supernet
from supernet.tasks import Classification, Task
from supernet.tasks.task import Output, in_float32
from supernet.training.accompanied import Seen
from supernet.training.data.batch import Batch, chunk, joined
from supernet.training.distributed import GradientAverage
from supernet.training.execution import DEFAULT, Execution
from supernet.training.loop.config import LoopConfig
from supernet.training.methods import resolutions
from supernet.training.methods.sampling import Learner, unscaled

INDEPENDENT = ("sandwich", "spos", "fairnas", "progressive")
"""Methods by which processes may choose subnets apart from each other."""


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """How a supernet is trained."""

    method: Literal["sandwich", "best_up", "worst_up", "spos", "fairnas", "cream", "progressive"] = "sandwich"
    """Which subnets a step trains: the largest, random ones and the smallest (BigNAS, AlphaNet), random ones picked by
    their loss (AttentiveNAS), random ones alone (SPOS), every operation equally often (FairNAS), a random one taught by
    the best so far (Cream), or ever smaller ones (Once-for-All), which a recipe with phases does."""
    random_subnets: int = 2
    """Random subnets a step, beside the largest and the smallest if the method has these; unused by fairnas."""
    subnets_per_rank: bool = False
    """Draw random subnets anew in each process, where there are several; the largest and the smallest are in all."""
    resolution_steps: int = 1
    """Steps in a row whose random subnets have one resolution, so that a GPU meets new shapes less often; 1 draws one
    for each subnet."""
    trials: Annotated[int, only_where(method=("best_up", "worst_up"))] = 3
    """Subnets of similar MACs that best_up and worst_up pick from."""
    macs_step: Annotated[float, only_where(method=("best_up", "worst_up", "spos"))] = 25.0
    """How similar, in millions of MACs; and the width of the bins of macs_range."""
    macs_range: tuple[float, float] | None = None
    """Fewest and most millions of MACs of the subnets of spos, which are then drawn uniformly over bins of MACs; by
    default they are drawn uniformly, and nearly all of a large space have about the same."""
    board_epoch: Annotated[int, only_where(method=("cream",))] = 20
    """Epoch, counted from 0, from which cream keeps the best paths, to teach others."""
    matching_steps: Annotated[int, only_where(method=("cream",))] = 200
    """Steps between updates of cream's learned choice of the teacher."""
    distillation: Annotated[
        Literal["kl", "adaptive_alpha"], only_where(method=("sandwich", "best_up", "worst_up", "cream", "progressive"))
    ] = "kl"
    """How subnets learn from the largest's logits: KL divergence, or AlphaNet's adaptive alpha-divergence."""
    temperature: float = 1.0
    """Temperature of the KL divergence."""
    label_weight: float = 0.0
    """Weight of the loss on labels, beside the distillation, for the subnets of the method sandwich that learn from the
    largest: 1 lets a training from nothing begin that is stuck where the largest has nothing to teach yet."""
    accumulation: int = 1
    """Equal parts of a batch that run one after another, to take less memory; BatchNorm sees a part at a time."""
    calibration_images: int | None = None
    """Training images that BatchNorm is recalibrated on before a subnet is evaluated; if None, 1000, or one a class if
    there are more classes."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("accumulation", "calibration_images", "random_subnets", "trials", "resolution_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
        if self.subnets_per_rank and self.method not in INDEPENDENT:
            raise ValueError(
                f"subnets_per_rank goes with the methods {', '.join(INDEPENDENT)}; {self.method} compares subnets on "
                "the images of all processes, which therefore have the same ones"
            )
        if self.resolution_steps > 1 and (self.method not in resolutions.METHODS or self.macs_range):
            raise ValueError(
                f"resolution_steps above 1 goes with the methods {', '.join(resolutions.METHODS)}, without macs_range; "
                f"not {self.resolution_steps} for {self.method}"
            )
        if self.macs_range and (self.method != "spos" or not 0 <= self.macs_range[0] < self.macs_range[1]):
            raise ValueError(
                f"macs_range is the fewest and the most millions of MACs, for the method spos, not {self.macs_range} "
                f"for {self.method}: leave it out"
            )
        if self.label_weight < 0 or (self.label_weight and self.method != "sandwich"):
            raise ValueError(
                f"label_weight is 0 or more, and 0 unless the method is sandwich, not {self.label_weight} for "
                f"{self.method}"
            )
        if self.macs_step <= 0:
            raise ValueError(f"macs_step is above 0, not {self.macs_step}")
        if self.temperature <= 0 or (self.temperature != 1 and self.distillation != "kl"):
            raise ValueError(f"temperature is above 0, and 1 unless distillation is kl, not {self.temperature}")

    def images_to_calibrate(self, num_classes: int | None) -> int:
        """`calibration_images`, or what stands for None."""
        return self.calibration_images or max(1000, num_classes or 0)


class StepOutputs(NamedTuple):
    """The losses and outputs of the learners of a step."""

    losses: Tensor  # [learners]
    outputs: list[Output]  # of each learner, without gradient


@dataclass(frozen=True)
class TrainStep:
    """Gives `net` the gradients of a step: `train_step(batch, learners)`.

    `task` says what is learnt, `config` the rates of learners that are regularised, `teacher` is the frozen network of
    learners whose teacher is "external". `execution` says in which precision subnets run, `stand_in` what runs in the
    place of their pieces, and `scale` gives what is differentiated in a loss's place. `average` takes the gradients to
    the other processes, if there are any, from the last backward pass on. `companions` are those of the largest subnet;
    others use the leading part of them.
    """

    net: Supernet
    task: Task
    config: TrainConfig
    teacher: nn.Module | None = None
    execution: Execution = DEFAULT
    scale: Callable[[Tensor], Tensor] = unscaled
    average: GradientAverage | None = None
    stand_in: StandIn | None = None
    companions: Companions | None = None

    def __call__(self, batch: Batch, learners: Sequence[Learner]) -> StepOutputs:
        """Accumulate the gradients of `learners` on a batch: the mean over `config.accumulation` equal parts of it."""
        batches = chunk(batch, self.config.accumulation)
        parts = [self._part(part, learners, is_last=part is batches[-1]) for part in batches]
        losses = torch.stack([part.losses for part in parts]).mean(0)
        return StepOutputs(losses, [joined(outputs) for outputs in zip(*(part.outputs for part in parts))])

    def _part(self, batch: Batch, learners: Sequence[Learner], is_last: bool) -> StepOutputs:
        """The same on one part of the batch. A learner gets the very output that gave its teacher a gradient."""
        task, device = self.task, self._device
        last = max((index for index, learner in enumerate(learners) if learner.has_gradient), default=None)
        external, seen = None, Seen(self.companions, {learner.teacher for learner in learners}, self.config.temperature)
        if any(learner.teacher == "external" for learner in learners):
            with torch.no_grad(), self.execution.autocast(device), seen.of("external", lambda: self.teacher):
                external = task.freeze(untouched(self.teacher, *task.inputs(batch, None)))
        outputs: list[Output] = []
        losses = []
        for index, learner in enumerate(learners):
            arch, has_gradient = learner.arch, learner.has_gradient
            average = self.average if is_last and index == last else None
            rates = self._rates(learner.regularised)
            with (
                torch.set_grad_enabled(has_gradient),
                seen.of(index, lambda arch=arch, rates=rates: self.net.skeleton(arch, rates)),
            ):
                output = self.output(
                    arch,
                    batch,
                    regularised=learner.regularised,
                    accumulate=has_gradient,
                    arrived=average and average.arrived,
                )
            loss = torch.zeros((), device=device)
            if learner.label_weight:
                loss = learner.label_weight * task.loss(output, batch)
            if learner.teacher is not None and learner.teacher_weight:
                taught = external if learner.teacher == "external" else outputs[learner.teacher]
                loss = loss + learner.teacher_weight * task.distil(output, taught, batch)
            if self.companions is not None and has_gradient:
                with self.execution.autocast(device):
                    added = seen.loss(index, learner.teacher, output, task, batch)
                loss = loss + learner.companion_weight * added
            if average:
                average.begin(complete=self.net.without(arch))
            if has_gradient:
                self.scale(loss / self.config.accumulation).backward()
            seen.forget(index)
            outputs.append(task.freeze(output))
            losses.append(loss.detach())
        return StepOutputs(torch.stack(losses), outputs)

    def output(
        self,
        arch: Arch,
        batch: Batch,
        *,
        regularised: bool = False,
        accumulate: bool = False,
        arrived: Arrived | None = None,
    ) -> Output:
        """That of the subnet `arch` on a batch, floating point in float32."""
        rates = self._rates(regularised)
        with self.execution.autocast(self._device):
            inputs = self.task.inputs(batch, arch)
            output = self.net(
                *inputs, arch=arch, rates=rates, accumulate=accumulate, arrived=arrived, stand_in=self.stand_in
            )
        return in_float32(output)

    def _rates(self, regularised: bool) -> DropRates:
        return DropRates(self.config.drop_rate, self.config.drop_path_rate) if regularised else NO_DROP

    @property
    def _device(self) -> torch.device:
        return next(self.net.parameters()).device


def task_of(family: Family, config: TrainConfig) -> Task:
    """The family's task. Classification has the settings that `config` has for it."""
    if not isinstance(family.task, Classification):
        return family.task
    return replace(
        family.task,
        label_smoothing=config.label_smoothing,
        distillation=config.distillation,
        temperature=config.temperature,
    )
