"""Training a supernet: the loop around the step, and its evaluations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.accompanied import ALONE, Beside, Companions
from supernet.artifacts.ownership import owned
from supernet.evaluation import calibrated, evaluate
from supernet.families import Family
from supernet.space import Arch, SearchSpace
from supernet.supernet import Supernet
from supernet.tasks import Classification, Task
from supernet.training import distributed
from supernet.training.accompanied import Accompanied, members, new_companions
from supernet.training.data import Data
from supernet.training.data.batch import Batch, on, take
from supernet.training.execution import DEFAULT, Execution
from supernet.training.loop import Loop, StepResult
from supernet.training.loop.average import MovingAverage
from supernet.training.loop.labels import with_class_weights
from supernet.training.loop.signals import Signals
from supernet.training.methods.macs_bins import MacsBins
from supernet.training.methods.prioritized import PrioritizedPaths
from supernet.training.methods.resolutions import ResolutionRuns
from supernet.training.methods.sampling import Attentive, Fair, Method, Sandwich, Step, Uniform
from supernet.training.pieces import ways_of
from supernet.training.randomness import Stream, generator
from supernet.training.step import TrainConfig, TrainStep, task_of


def train(
    family: Family,
    net: Supernet,
    data: Data,
    config: TrainConfig,
    run_dir: Path,
    execution: Execution = DEFAULT,
    *,
    method: Method | None = None,
    teacher: nn.Module | None = None,
    beside: Beside = ALONE,
    resume: bool = False,
    on_step: Callable[[StepResult], None] = lambda result: None,
    on_begin: Callable[[], None] = lambda: None,
) -> Supernet:
    """Train `net` on the family's task and return the network to use: its moving average if there is one, otherwise
    `net` itself.

    `method` chooses the subnets of each step, by default the one that `config` names. `teacher` gives the outputs that
    learners with an external teacher learn from; it gets the inputs of the step as they are, images in the space's
    largest resolution, and is in eval mode. What `beside` says is learnt by companions of all subnets, which see their
    features; checkpoints hold them. A subnet's features are compared with those of the network that it learns from.

    Writes, resumes, joins processes and raises as `supernet.training.loop.Loop` does: TrainingError, naming step and
    architecture, if a loss or gradient is not finite or the training has diverged. ValueError if data and task do not
    fit, if the space has no resolutions to stay for `config.resolution_steps`, or if another process trains into
    `run_dir`.
    """
    with owned(run_dir), Signals() as signals:
        method = method or make_method(family, config)
        net.statistics_of = None  # before the moving average copies it
        runs = ResolutionRuns(method.space, config.resolution_steps, config.seed)
        task = with_class_weights(task_of(family, config), config, data)
        resolutions = [family.resolution(arch) for arch in (net.space.largest, net.space.smallest)]
        resolution = None if None in resolutions else max(resolutions)
        companions = None
        if beside.has_companions:
            execution = eager(execution)
            companions = _companions(beside, net, task, data, config, teacher, resolution)
        loop = Loop(
            net if companions is None else Accompanied(net, [companions]),
            data,
            config,
            run_dir,
            _Evaluation(task, method.space, data, config, execution, resolution, family.num_classes),
            execution,
            task=task,
            kept={"method": method},
            parts=config.accumulation,
            late=[*net.late_parameters(), *(() if companions is None else companions.parameters())],
            alike=not config.subnets_per_rank,
            resume=resume,
            on_step=on_step,
            on_begin=on_begin,
            uninformed=task.uninformed_loss * (1 + beside.companions_weight) if companions else None,
            signals=signals,
        )
        if teacher is not None:
            loop.place(teacher).eval()
        ways = ways_of(execution, loop.device)
        as_it_is = TrainStep(net, task, config, teacher, execution, loop.scale, loop.average, companions=companions)

        for number, batch in loop.batches(resolution):
            epoch, step_of_epoch = divmod(number, loop.steps_per_epoch)
            progress = number / loop.steps.stop
            if step_of_epoch == 0:
                method.start_epoch(net, _shaped_like_parameters(net, loop.optimizer, loop.ema), progress)
            own = (distributed.rank(),) if config.subnets_per_rank else ()
            draw = generator(config.seed, Stream.SUBNETS, number, *own)
            with ways.step() as stand_in:
                train_step = replace(as_it_is, stand_in=stand_in)
                step = Step(
                    *(number, epoch, progress, draw, net, batch, task, train_step.output, loop.lr, loop.scale),
                    part=runs.space_of(number),
                )
                learners = method.learners(step)
                with loop.seeded(number):
                    losses, outputs = train_step(batch, learners)
                archs = [learner.arch for learner in learners]
                loop.update(number, losses, [f"{arch} or its like elsewhere" for arch in archs] if own else archs)
            method.finish(step, learners, outputs)
            loop.finish(number, {"losses": losses})
        return members(loop.result)[0]


def eager(execution: Execution) -> Execution:
    """`execution` by whose steps modules show their features; ValueError if it is to be another."""
    if execution.step not in ("auto", "eager"):
        raise ValueError(
            f"companions see features, which pieces run by step {execution.step} do not show: leave out one of the two"
        )
    return replace(execution, step="eager")


def _companions(
    beside: Beside,
    net: Supernet,
    task: Task,
    data: Data,
    config: TrainConfig,
    teacher: nn.Module | None,
    resolution: int | None,
) -> Companions:
    """Those of the largest subnet, and of `teacher` or else of the largest subnet as a teacher."""
    largest = net.extract(net.space.largest).to("cpu")
    (found,) = new_companions(
        beside,
        [largest],
        [net.space.largest],
        task,
        data,
        resolution,
        config.seed,
        largest if teacher is None else teacher.to("cpu"),
        of_subnets=True,
    )
    return found


@dataclass(frozen=True)
class _Evaluation:
    """Each metric of the largest, the smallest and a few random subnets on held-out examples."""

    task: Task
    space: SearchSpace
    data: Data
    config: TrainConfig
    execution: Execution
    resolution: int | None
    num_classes: int | None

    @cached_property
    def archs(self) -> dict[str, Arch]:
        draw = generator(self.config.seed, Stream.EVALUATION)
        random = {f"random_{i}": self.space.sample(draw) for i in range(self.execution.eval_random)}
        return {"largest": self.space.largest, "smallest": self.space.smallest, **random}

    @cached_property
    def calibration_batches(self) -> list[Batch]:
        count = self.config.images_to_calibrate(self.num_classes)
        return list(self.data.compact().calibration_batches(self.resolution, count, self.config.seed))

    @cached_property
    def holdout(self) -> list[Batch]:
        batches = self.data.compact().evaluation_batches(self.data.holdout, self.resolution)
        return list(take(batches, self.execution.eval_images))

    def __call__(self, trained: nn.Module) -> dict[str, dict[str, float]]:
        (net,) = members(trained)
        metrics = distributed.spread(partial(self._metrics, net), list(self.archs.values()))
        return {name: dict(zip(self.archs, (found[name] for found in metrics))) for name in metrics[0]}

    def _metrics(self, net: Supernet, arch: Arch) -> dict[str, float]:
        device = next(net.parameters()).device
        calibration = (self.task.inputs(on(device, batch), arch) for batch in self.calibration_batches)
        model = calibrated(net, arch, calibration, self.execution.calibration_bytes)
        return evaluate(model, self.task, self.holdout, arch)


def make_method(family: Family, config: TrainConfig) -> Method:
    """The method that `config` names, with its settings."""
    space, subnets = family.space, config.random_subnets
    if config.method == "sandwich":
        return Sandwich(space, subnets, config.label_weight)
    if config.method == "spos":
        bins = None
        if config.macs_range:
            low, high = config.macs_range
            bins = MacsBins(space, family.macs, low * 1e6, high * 1e6, config.macs_step * 1e6)
        return Uniform(space, subnets, bins=bins)
    if config.method == "fairnas":
        return Fair(space)
    if config.method == "cream":
        if not isinstance(family.task, Classification):
            raise ValueError(f"the method cream compares probabilities of classes, which {family.task} does not have")
        return PrioritizedPaths(
            space,
            family.macs,
            num_classes=family.num_classes,
            start_epoch=config.board_epoch,
            update_steps=config.matching_steps,
        )
    if config.method == "progressive":
        raise ValueError("the method progressive needs a job with phases, which a recipe sets, such as once_for_all")
    pick = "best" if config.method == "best_up" else "worst"
    return Attentive(space, family.macs, pick, subnets, config.trials, config.macs_step * 1e6)


def _shaped_like_parameters(
    net: Supernet, optimizer: torch.optim.Optimizer, ema: MovingAverage | None
) -> list[dict[str, Tensor]]:
    """What belongs to the parameters and is shaped like them: the optimizer's state, and the moving average."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, parameter in net.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                found.setdefault(key, {})[name] = value
    if ema is None:
        return list(found.values())
    (average,) = members(ema.module)
    return [*found.values(), dict([*average.named_parameters(), *average.named_buffers()])]
