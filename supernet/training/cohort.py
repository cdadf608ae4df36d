"""Training plain models, alone or side by side, on labels, by a teacher and by each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from distill.objective import Objective, cohort_losses
from supernet.artifacts.ownership import owned
from supernet.evaluation import evaluate
from supernet.space import Arch
from supernet.tasks import Classification, Task
from supernet.tasks.task import Output
from supernet.training import distributed
from supernet.training.accompanied import Accompanied, Cohort, members, new_companions
from supernet.training.data import Data
from supernet.training.data.batch import Batch, take
from supernet.training.execution import DEFAULT, Execution
from supernet.training.loop import Loop, StepResult
from supernet.training.loop.config import LoopConfig
from supernet.training.loop.labels import with_class_weights
from supernet.training.loop.signals import Signals
from supernet.training.slimming import add_slimming

# N images, C channels, R resolution in pixels

LABELS_ALONE = Objective()


def train_models(
    models: Sequence[nn.Module],
    resolutions: Sequence[int | None],
    data: Data,
    config: LoopConfig,
    run_dir: Path,
    objective: Objective = LABELS_ALONE,
    teacher: nn.Module | None = None,
    *,
    task: Task | None = None,
    execution: Execution = DEFAULT,
    resume: bool = False,
    on_step: Callable[[StepResult], None] = lambda result: None,
    on_begin: Callable[[], None] = lambda: None,
    proximal: Callable[[float], None] = lambda lr: None,
) -> list[nn.Module]:
    """Train one model, or several side by side on the same examples; the networks to use: their moving averages if
    there are such.

    Each of `models` gets images [N, C, R, R] of its own of `resolutions`, or inputs that have no such size for None:
    those that `task` gives an architecture with the choice `resolution` alone, or no architecture. The task is by
    default to tell the classes of `data` apart, with the label smoothing of `config`.

    A step minimises `distill.objective.cohort_losses`, by which the models teach each other if `objective` says so; the
    frozen `teacher` takes the same inputs as each. Models that are `ToldOfSteps` are told before. With several models,
    metrics give losses and metrics of each, in their order; checkpoints hold all of them, and the companions of
    `objective`, if it has such. Writes, resumes, joins processes and raises as `supernet.training.loop.Loop` does.
    """
    net = Cohort(models) if len(models) > 1 else models[0]
    task = task or Classification(data.num_classes, label_smoothing=config.label_smoothing)
    task = with_class_weights(task, config, data)
    archs = [None if resolution is None else Arch({"resolution": resolution}) for resolution in resolutions]
    largest = max((resolution for resolution in resolutions if resolution is not None), default=None)
    companions = None
    if objective.has_companions:
        companions = new_companions(objective, models, archs, task, data, largest, config.seed, teacher)
        net = Accompanied(net, companions)
    uninformed = task.uninformed_loss * max(objective.total_weight, 1.0) * len(models)
    name = ", ".join(type(model).__name__ for model in models)
    with owned(run_dir), Signals() as signals:
        loop = Loop(
            net,
            data,
            config,
            run_dir,
            partial(_evaluate, task, data, archs, execution.eval_images),
            execution,
            task=task,
            resume=resume,
            on_step=on_step,
            on_begin=on_begin,
            uninformed=uninformed,
            penalise=partial(add_slimming, models, objective.slimming),
            proximal=proximal,
            signals=signals,
        )
        if teacher is not None:
            loop.place(teacher).eval()
        students = [torch.compile(model, dynamic=False) for model in models] if execution.step == "compile" else models
        for step, batch in loop.batches(largest):
            for model in models:
                if isinstance(model, ToldOfSteps):
                    model.begin_step(step, loop.steps.stop)
            with loop.seeded(step), execution.autocast(loop.device):
                losses = cohort_losses(
                    objective,
                    students,
                    [task.inputs(batch, arch) for arch in archs],
                    lambda output, batch=batch: task.loss(output, batch),
                    teacher,
                    None if isinstance(task, Classification) else partial(_distil, task, batch),
                    companions,
                    batch[2] if objective.second_task else None,
                )
            if loop.average:
                loop.average.begin()
            loop.scale(losses.total).backward()
            loop.update(step, losses.total[None], [name])
            loop.finish(step, {"loss": losses.total, "losses": losses.parts})
        return members(loop.result)


@runtime_checkable
class ToldOfSteps(Protocol):
    """A model that trains otherwise in some steps than in others."""

    def begin_step(self, step: int, steps: int) -> None:
        """Before the step `step`, counted from 0, of so many in the whole training."""


def _distil(task: Task, batch: Batch, output: Output, other: Output) -> Tensor:
    """What a network learns from another's output by the task."""
    return task.distil(output, task.freeze(other), batch)


def _evaluate(
    task: Task, data: Data, archs: Sequence[Arch | None], count: int, net: nn.Module
) -> dict[str, float | list[float]]:
    """The metrics on `count` held-out examples: of several networks, each a list."""

    def metrics_of(member: tuple[nn.Module, Arch | None]) -> dict[str, float]:
        model, arch = member
        batches = data.evaluation_batches(data.holdout, arch and arch["resolution"])
        return evaluate(model, task, take(batches, count), arch)

    found = distributed.spread(metrics_of, list(zip(members(net), archs)))
    if len(found) > 1:
        return {metric: [metrics[metric] for metrics in found] for metric in found[0]}
    return found[0]
