"""Training one plain model, on labels, by a teacher and by peers: from scratch, or on from the weights that it has.

With the settings, the images and the loop of a supernet's training, so that the two may be compared.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from distill.objective import BY_TEACHER, Objective
from supernet.artifacts.ownership import owned
from supernet.artifacts.reading import typed
from supernet.artifacts.runs import cached, data_of, data_said_again, open_data, open_run, read_config
from supernet.artifacts.subnet import Subnet, SubnetConfig, load_subnet, read_subnet_config, save_subnet
from supernet.artifacts.teacher import load_teacher
from supernet.artifacts.weights import load_weights
from supernet.conditions import GIVEN, only_where
from supernet.families import Family
from supernet.families.named import SPACES, TEACHER_SPACES, make_family
from supernet.families.timm_models import self_contained
from supernet.skeleton import build_skeleton
from supernet.space import Arch
from supernet.training import distributed
from supernet.training.aggregation import Aggregation, aggregated
from supernet.training.cohort import train_models
from supernet.training.data import DataConfig, ImageData
from supernet.training.data.named import only_images
from supernet.training.data.second_labels import check_second_task
from supernet.training.execution import Execution
from supernet.training.loop import StepResult
from supernet.training.loop.config import LoopConfig
from supernet.training.randomness import Stream, part_seed

# N images, C channels, R resolution in pixels


@dataclass(frozen=True)
class ModelJob:
    """All that defines the training of one model."""

    space: str = "mobilenet_v3_micro"
    """Name of the search space, or code of your own: package.module:function or path/to/file.py:function; `timm` is
    that of a single timm model."""
    space_options: str = "{}"
    """Options of the space as a JSON object, such as {"name": "resnet18", "input_size": 32}."""
    arch: str | None = None
    """The architecture as a JSON object; by default the largest."""
    start: str = "scratch"
    """Weights to start from: scratch, pretrained (those that the space's options name), or the folder of a subnet. A
    classifier for other classes starts anew."""
    teacher: str | None = None
    """Network to learn from: the folder of a subnet or of a finished training run, or a name of timm's. One that
    answers, for kl or adaptive_alpha, tells the same classes apart, by name and in their order."""
    teacher_weights: Annotated[str | None, only_where(teacher=GIVEN)] = None
    """File with the weights of a timm teacher for these classes; by default timm's own, for its own classes."""
    teacher_input_size: Annotated[int | None, only_where(teacher=GIVEN)] = None
    """Pixels a side of a timm teacher's images; by default the model's own. Refused for a folder of another size."""
    teacher_space: Annotated[str | None, only_where(teacher=GIVEN)] = None
    """The space of the teacher's folder, to be said again if it is code of your own; by default the model's own."""
    peers: tuple[str, ...] = ()
    """Networks that train beside it, to learn from each other by the loss mutual: names of timm's, or folders of
    subnets."""
    aggregation: Aggregation = "last"
    """Which mixture of the teacher's layers of one resolution losses on features compare with: the last one, their
    average, a random one, or the one that a search on the training images finds (DFA, arXiv 2008.00506)."""
    aggregation_epochs: Annotated[int, only_where(aggregation=("searched",))] = 4
    """Epochs of that search, on half of the images each, for each resolution."""
    data: DataConfig = field(default_factory=DataConfig)
    train: LoopConfig = field(default_factory=LoopConfig)
    execution: Execution = field(default_factory=Execution)
    objective: Objective = field(default_factory=Objective)

    def __post_init__(self):
        if self.objective.needs_teacher != (self.teacher is not None):
            raise ValueError(
                f"the losses {', '.join(BY_TEACHER)} need a teacher, and a teacher needs one of them: the teacher is "
                f"{self.teacher}, the losses are {self.objective}"
            )
        if bool(self.objective.mutual) != bool(self.peers):
            raise ValueError(
                "the loss mutual needs peers, and peers need a weight of it: the peers are "
                f"{', '.join(self.peers) or 'none'}, the weight is {self.objective.mutual}"
            )
        if self.aggregation != "last" and (
            not self.objective.by_features or self.objective.layers or self.peers or self.aggregation_epochs < 1
        ):
            raise ValueError(
                f"the aggregation {self.aggregation} mixes layers of a teacher for losses on features, such as hint, "
                "without layers that are named or peers, and is searched for at least 1 epoch"
            )
        by_features = [*self.objective.by_features, *(["heads"] if self.objective.has_heads else [])]
        check_second_task(self.objective, self.data)
        if self.execution.step == "compile" and by_features:
            raise ValueError(
                f"a compiled model does not show its features to {', '.join(by_features)}: leave out step=compile, or "
                "these losses"
            )


AnyModelJob = TypeVar("AnyModelJob", bound=ModelJob)


def run_model_job(
    job: ModelJob,
    directory: Path,
    *,
    resume: bool = False,
    on_step: Callable[[StepResult], None] = lambda result: None,
    around: Callable[[Trainee, ImageData], nn.Module] = lambda trainee, data: trainee.model,
) -> Subnet:
    """Train the model that `job` describes, with its run in `directory`; the model on the CPU, in eval mode.

    `around` makes of the model what is trained in its place, and comes out. Peers are saved in `directory/peers/`, each
    as a folder like 1-resnet18. With `resume` a run that was begun
    there goes on, and one that was not begins. ValueError if there is a run already and `resume` is not said, if it was
    begun with other settings (its execution, and where images lie, may be said anew), or if another process is at it.
    """
    with owned(directory):
        data, trainees, teacher, objective, begin = prepare_job(job, directory, resume, several_labels=True)
        trained = train_models(
            [around(trainees[0], data), *(trainee.model for trainee in trainees[1:])],
            [trainee.family.resolution(trainee.arch) for trainee in trainees],
            data,
            job.train,
            directory,
            objective,
            teacher,
            execution=job.execution,
            task=trainees[0].family.task if data.several_labels else None,
            resume=resume,
            on_step=on_step,
            on_begin=begin,
        )
        own, *peers = [
            Subnet(
                model.to("cpu", memory_format=torch.contiguous_format).eval(),
                SubnetConfig.of(trainee.job.space, trainee.job.space_options, trainee.arch, data),
            )
            for model, trainee in zip(trained, trainees)
        ]
        for index, (name, peer) in enumerate(zip(job.peers, peers), 1):
            folder = directory / "peers" / f"{index}-{Path(name).name}"
            if distributed.rank() == 0 and not (folder / "config.json").exists():
                save_subnet(folder, peer, onnx=False)
    return own


class Trainee(NamedTuple):
    """A network to train: that of a job, or one of its peers."""

    job: ModelJob  # with options of its space as they are saved
    family: Family
    arch: Arch
    model: nn.Module  # with the weights to start from


class Prepared(NamedTuple):
    """What a job names."""

    data: ImageData
    trainees: list[Trainee]  # the peers come last
    teacher: nn.Module | None
    objective: Objective  # the job's, which names the layers of a teacher whose layers are mixed
    begin: Callable[[], None]  # to be called when the first step is done, see `supernet.artifacts.runs.open_run`


def prepare_job(job: ModelJob, directory: Path, resume: bool, *, several_labels: bool = False) -> Prepared:
    """Open and make all that `job` names, and see that its run may begin or go on in `directory`; raises what
    `run_model_job` does, and ValueError for images with several labels each unless these may be."""
    job = dataclasses.replace(job, data=data_of(job))
    data = open_data(job.data, job.train.seed, job.execution.workers)
    instead = "train a supernet whose space is that one architecture"
    data = only_images(data, "the training of a single model", instead, several_labels=several_labels)
    data = cached(data, job.execution)
    own = _trainee(job, data)
    peers = [_trainee(peer, data) for peer in peer_jobs(job, own.family.resolution(own.arch))]
    teacher, objective = None, job.objective
    if job.teacher is not None:
        teacher = load_teacher(
            job.teacher,
            data.config,
            data.classes,
            job.teacher_weights,
            job.teacher_input_size,
            by_logits=bool(objective.kl or objective.adaptive_alpha),
            space=job.teacher_space or job.space,
            dataset=job.data.dataset,
        )
    begin = open_run(job, data, directory, resume)
    if teacher is not None and job.aggregation != "last":
        teacher = aggregated(
            teacher,
            own.model,
            data,
            job.train,
            own.family.resolution(own.arch),
            job.aggregation,
            job.aggregation_epochs,
            directory,
            job.execution.device,
        )
        objective = dataclasses.replace(objective, layers=teacher.layers)
    return Prepared(data, [own, *peers], teacher, objective, begin)


def _trainee(job: ModelJob, data: ImageData) -> Trainee:
    family = make_family(job.space, job.space_options, data.family_arguments)
    arch = family.space.largest if job.arch is None else family.space.validate(Arch.from_json(job.arch))
    model = initial_model(job, family, arch, data.classes)
    # a folder that these options name may be gone when the model is saved
    job = dataclasses.replace(job, space_options=self_contained(job.space, job.space_options))
    return Trainee(job, family, arch, model)


def peer_jobs(job: ModelJob, resolution: int) -> list[ModelJob]:
    """What each of the peers of `job` would be trained by alone: with fresh weights by a seed of its own, or, where the
    model does not start from scratch either, with the weights of a subnet. Models of timm's take the images [N, C, R,
    R] of the model."""
    jobs = []
    for index, name in enumerate(job.peers, 1):
        train = dataclasses.replace(job.train, seed=part_seed(job.train.seed, Stream.PEER, index))
        if Path(name).is_dir():
            config = read_subnet_config(Path(name))
            start = "scratch" if job.start == "scratch" else name
            space = SPACES.said_again(config.space, job.space, name)
            peer = ModelJob(space, config.space_options, json.dumps(config.arch), start, train=train)
        else:
            peer = ModelJob("timm", json.dumps({"name": name, "input_size": resolution}), train=train)
        jobs.append(peer)
    return jobs


def read_model_job(
    directory: Path,
    kind: type[AnyModelJob] = ModelJob,
    *,
    space: str | None = None,
    dataset: str | None = None,
    teacher_space: str | None = None,
) -> AnyModelJob | None:
    """The job of the run that was begun in `directory`, None if there is none.

    `space`, `dataset` and `teacher_space` say again what of these is code of one's own, as in
    `supernet.artifacts.runs.load_run`. A teacher's space that is the model's own need not be said.
    """
    if not (directory / "config.json").exists():
        return None
    values = read_config(directory)["job"]
    try:
        job = typed(kind, values)
    except ValueError as error:
        raise ValueError(f"this job was written by another version, or is damaged: {error}") from error
    said = SPACES.said_again(job.space, space, directory)
    data = data_said_again(job.data, job.space, said, dataset, directory)
    if job.teacher_space is not None:
        if teacher_space is None and job.teacher_space == job.space:
            teacher_space = said
        teacher_space = TEACHER_SPACES.said_again(job.teacher_space, teacher_space, directory)
    return dataclasses.replace(job, space=said, data=data, teacher_space=teacher_space)


def initial_model(job: ModelJob, family: Family, arch: Arch, classes: Sequence[str]) -> nn.Module:
    """The plain module of `arch` with the weights that `job` starts from, to tell `classes` apart; fresh ones are drawn
    from its seed.

    From a subnet of other classes, compared by name, all weights are taken but those of the classifier, which starts
    anew; if the same classes have another order, its rows are put into that order. A pretrained classifier is taken as
    `Family.supernet` does. ValueError if the weights do not fit.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(job.train.seed)
        model = family.build(arch, drop_rate=job.train.drop_rate, drop_path_rate=job.train.drop_path_rate)
    if job.start == "scratch":
        return model
    if job.start == "pretrained":
        if family.weights is None:
            raise ValueError(f"the space {job.space!r} with options {job.space_options} has no pretrained weights")
        weights = family.supernet(job.train.seed, classes=classes).extract(arch).state_dict()
    else:
        subnet = load_subnet(job.start, space=job.space)
        weights = subnet.model.state_dict()
        if subnet.config.classes != tuple(classes):
            fresh = model.state_dict()
            for name, dim in _classifier(job, arch, len(classes)).items():
                weights[name] = _for_classes(weights.get(name), fresh[name], dim, subnet.config.classes, classes)
    load_weights(model, weights, job.start)
    return model


def _classifier(job: ModelJob, arch: Arch, num_classes: int) -> dict[str, int]:
    """The tensors of the subnet `arch` whose size is the number of classes, and in which dimension."""
    shapes = [
        {name: tensor.shape for name, tensor in build_skeleton(family.build, arch).state_dict().items()}
        for family in (
            make_family(job.space, job.space_options, {"num_classes": num_classes + more}) for more in (0, 1)
        )
    ]
    return {
        name: dim
        for name, shape in shapes[0].items()
        for dim, (size, one_more) in enumerate(zip(shape, shapes[1][name]))
        if one_more == size + 1 == num_classes + 1
    }


def _for_classes(
    trained: Tensor | None, fresh: Tensor, dim: int, trained_for: Sequence[str], classes: Sequence[str]
) -> Tensor:
    """A classifier's tensor for `classes`: that for `trained_for` in their order, or else the fresh one."""
    if trained is None or sorted(trained_for) != sorted(classes):
        return fresh
    order = torch.tensor([tuple(trained_for).index(name) for name in classes])
    return trained.index_select(dim, order)


def model_settings(config: LoopConfig) -> LoopConfig:
    """The part of a supernet's settings that holds for one model, too."""
    return LoopConfig(**{field.name: getattr(config, field.name) for field in dataclasses.fields(LoopConfig)})
