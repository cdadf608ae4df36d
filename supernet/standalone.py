"""Training one plain model, on labels and by a teacher: from scratch, or on from the weights that it has.

With the settings, the images and the loop of a supernet's training, so that the two may be compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from distill.objective import Objective, objective_losses
from supernet import distributed
from supernet.data import Data, DataConfig, load_data
from supernet.evaluation import accuracy
from supernet.families import Family
from supernet.loop import Loop, LoopConfig, StepResult, autocast
from supernet.runs import begin_run, make_family, read_config, with_tuples
from supernet.space import Arch
from supernet.subnet import Subnet, SubnetConfig, load_subnet
from supernet.teacher import load_teacher

# N images, C channels, R resolution in pixels

LABELS_ALONE = Objective()


@dataclass(frozen=True)
class ModelJob:
    """All that defines the training of one model."""

    space: str = "mobilenet_v3_micro"
    """Name of the search space; `timm` is that of a single timm model."""
    space_options: str = "{}"
    """Options of the space as a JSON object, such as {"name": "resnet18", "input_size": 32}."""
    arch: str | None = None
    """The architecture as a JSON object; by default the largest."""
    start: str = "scratch"
    """Weights to start from: scratch, pretrained (those that the space's options name), or the folder of a subnet."""
    teacher: str | None = None
    """Network to learn from: the folder of a subnet, or a name of timm's."""
    teacher_weights: str | None = None
    """File with the weights of a timm teacher for these classes; by default timm's own, for its own classes."""
    teacher_input_size: int | None = None
    """Pixels a side of a timm teacher's images; by default the model's own."""
    data: DataConfig = field(default_factory=DataConfig)
    train: LoopConfig = field(default_factory=LoopConfig)
    objective: Objective = field(default_factory=Objective)

    def __post_init__(self):
        if self.objective.needs_teacher != (self.teacher is not None):
            raise ValueError(
                "the losses kl, adaptive_alpha, attention, distance, angle and similarity need a teacher, and a "
                f"teacher needs one of them: the teacher is {self.teacher}, the losses are {self.objective}"
            )


AnyModelJob = TypeVar("AnyModelJob", bound=ModelJob)


def run_model_job(
    job: ModelJob, directory: Path, *, resume: bool = False, on_step: Callable[[StepResult], None] = lambda result: None
) -> Subnet:
    """Train the model that `job` describes, with its run in `directory`; the model on the CPU, in eval mode.

    With `resume` a run that was begun there goes on, and one that was not begins. ValueError if there is a run
    already and `resume` is not said, or if it was begun with another job.
    """
    data, family, arch, model, teacher = prepare_job(job, directory, resume)
    resolution = family.resolution(arch)
    model = train_model(
        model, resolution, data, job.train, directory, job.objective, teacher, resume=resume, on_step=on_step
    )
    model = model.to("cpu", memory_format=torch.contiguous_format).eval()
    return Subnet(model, SubnetConfig.of(job.space, job.space_options, arch, data))


class Prepared(NamedTuple):
    """What a job names."""

    data: Data
    family: Family
    arch: Arch
    model: nn.Module  # with the weights to start from
    teacher: nn.Module | None


def prepare_job(job: ModelJob, directory: Path, resume: bool) -> Prepared:
    """Open and make all that `job` names, and begin its run in `directory`; raises what `run_model_job` does."""
    data = load_data(job.data, job.train.seed)
    family = make_family(job.space, job.space_options, data.num_classes)
    arch = family.space.largest if job.arch is None else family.space.validate(Arch.from_json(job.arch))
    model = initial_model(job, family, arch)
    teacher = None
    if job.teacher is not None:
        teacher = load_teacher(job.teacher, job.data, data.classes, job.teacher_weights, job.teacher_input_size)
    if distributed.rank() == 0:
        begin_run(job, data, directory, resume)
    distributed.wait()
    return Prepared(data, family, arch, model, teacher)


def read_model_job(directory: Path, kind: type[AnyModelJob] = ModelJob) -> AnyModelJob | None:
    """The job of the run that was begun in `directory`, None if there is none."""
    if not (directory / "config.json").exists():
        return None
    values = read_config(directory)["job"]
    parts = {name: type(part) for name, part in vars(kind()).items() if dataclasses.is_dataclass(part)}
    try:
        return kind(**{n: parts[n](**with_tuples(v)) if n in parts else v for n, v in values.items()})
    except TypeError as error:
        raise ValueError(f"this job was written by another version: {error}") from error


def initial_model(job: ModelJob, family: Family, arch: Arch) -> nn.Module:
    """The plain module of `arch` with the weights that `job` starts from; fresh ones are drawn from its seed.

    From a subnet of other classes, all weights are taken but those of the classifier. ValueError if they do not fit.
    """
    with torch.random.fork_rng():
        torch.manual_seed(job.train.seed)
        model = family.build(arch, drop_rate=job.train.drop_rate, drop_path_rate=job.train.drop_path_rate)
    if job.start == "scratch":
        return model
    if job.start == "pretrained":
        if family.weights is None:
            raise ValueError(f"the space {job.space!r} with options {job.space_options} has no pretrained weights")
        weights = family.supernet(job.train.seed).extract(arch).state_dict()
    else:
        weights = load_subnet(job.start).model.state_dict()
    own = model.state_dict()
    fresh = {
        name: own[name]
        for name, tensor in weights.items()
        if name in own and tensor.shape != own[name].shape and own[name].shape[:1] == (family.num_classes,)
    }
    try:
        model.load_state_dict({**weights, **fresh})
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise ValueError(f"the weights of {job.start} do not fit the model: {lines[-1].strip()}") from error
    return model


def train_model(
    model: nn.Module,
    resolution: int,
    data: Data,
    config: LoopConfig,
    run_dir: Path,
    objective: Objective = LABELS_ALONE,
    teacher: nn.Module | None = None,
    *,
    resume: bool = False,
    on_step: Callable[[StepResult], None] = lambda result: None,
) -> nn.Module:
    """Train `model` on images [N, C, R, R] and return the network to use: its moving average if there is one.

    A step minimises `distill.objective.objective_losses`, where the frozen `teacher` takes the same images. Writes,
    resumes, joins processes and raises as `supernet.loop.Loop` does.
    """

    def evaluate(net: nn.Module) -> float:
        images, labels = data.images(data.holdout, resolution, config.eval_images)
        return accuracy(net, zip(images.split(256), labels.split(256)))

    loop = Loop(model, data, config, run_dir, evaluate, resume=resume, on_step=on_step)
    if teacher is not None:
        loop.place(teacher).eval()
    for step, images, labels in loop.batches(resolution, data.num_classes):
        with loop.seeded(step), autocast(config, loop.device):
            losses = objective_losses(objective, model, images, labels, teacher, config.label_smoothing)
        losses.total.backward()
        loop.update(step, losses.total[None], [type(model).__name__])
        loop.finish(step, {"loss": losses.total, "losses": losses.parts})
    return loop.result


def model_settings(config: LoopConfig) -> LoopConfig:
    """The part of a supernet's settings that holds for one model, too."""
    return LoopConfig(**{field.name: getattr(config, field.name) for field in dataclasses.fields(LoopConfig)})
