"""A training run's directory: what it was asked to do, and what came out.

config.json            the job, what the data say of themselves and to the family, package versions, hardware, command,
                       and the number of its format (`supernet.artifacts.formats`); it is there once the first step is
                       done
metrics.jsonl          losses and accuracies by step
checkpoints/           to resume from
train.yaml             the flags that repeat it, of a run that a command began
tokenizer.json         of texts, and whatever else there is of the data that whoever uses a network needs besides it
0-features/            these two of learning features without labels, if that came first
1-largest/, ...        these two for each phase instead, in progressive shrinking
supernet.safetensors   the trained supernet
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict, TypeVar

import torch
from torch import Tensor

from distill.accompanied import Beside
from supernet.artifacts import formats, provenance
from supernet.artifacts.atomic import write_files, write_json
from supernet.artifacts.ownership import owned
from supernet.artifacts.reading import read_json, typed
from supernet.artifacts.weights import load_weights, read_safetensors, save_weights
from supernet.families import Family
from supernet.families.named import SPACES, make_family, normalisation
from supernet.families.timm_models import self_contained
from supernet.supernet import Supernet
from supernet.training import distributed, randomness
from supernet.training.data import Data, DataConfig, ImageData, load_data
from supernet.training.data.image_data import open_unlabelled_images
from supernet.training.data.named import DATASETS, is_of_any_kind, only_images
from supernet.training.data.second_labels import check_second_task
from supernet.training.data.splits import warn_of_few_judges
from supernet.training.execution import Execution, differences, located
from supernet.training.features import FeatureConfig, distil_features
from supernet.training.loop import StepResult
from supernet.training.loop.checkpoint import has_checkpoints
from supernet.training.methods.progressive import Phase, new_kinds, phase_config, phase_space, sort_channels
from supernet.training.methods.sampling import Uniform
from supernet.training.step import TrainConfig
from supernet.training.train import train

logger = logging.getLogger(__name__)

AnyData = TypeVar("AnyData", bound=Data)
IMAGES = ("classes", "images")  # what data said of themselves before formats had numbers


@dataclass(frozen=True)
class Job:
    """All that defines a training run."""

    space: str = "mobilenet_v3_micro"
    """Name of the search space, which --list-spaces shows, or code of your own: package.module:function or
    path/to/file.py:function."""
    space_options: str = "{}"
    """Options of the space as a JSON object, such as {"width_mult": 1.2}."""
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    execution: Execution = field(default_factory=Execution)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    beside: Beside = field(default_factory=Beside)
    phases: tuple[Phase, ...] = ()
    """Progressive shrinking in these phases, which share the epochs, instead of `train.method`; only recipes set it."""

    def __post_init__(self):
        if self.features.unlabelled is not None and self.phases:
            raise ValueError("unlabelled images come before one training on labels, not before phases: leave one out")
        check_second_task(self.beside, self.data)
        if self.beside.connectors and self.train.method in ("spos", "fairnas"):
            raise ValueError(
                f"{' and '.join(self.beside.connectors)} compare a subnet's features with those of the network that it "
                f"learns from, which the method {self.train.method} does not have: take sandwich, or leave them out"
            )
        if (self.train.method == "progressive") != bool(self.phases):
            raise ValueError(
                f"method progressive goes with phases, which a recipe sets, such as once_for_all or digits_shrinking; "
                f"here there are {len(self.phases)} phases and the method is {self.train.method}"
            )

    def family(self, arguments: Mapping[str, object]) -> Family:
        """The space that the job names, with what the data say (`supernet.training.data.Data.family_arguments`);
        ValueError if there is no space of that name or with those options."""
        return make_family(self.space, self.space_options, arguments)


class Content(TypedDict):
    """What config.json of a run holds besides what its data say of themselves."""

    job: dict[str, Any]
    family_arguments: dict[str, Any]
    held_out: int
    dataset_sha256: str | None
    space_sha256: NotRequired[str | None]
    space_options: NotRequired[str]
    streams: NotRequired[int]


class Run(NamedTuple):
    """A finished run, ready to be searched."""

    family: Family
    net: Supernet  # on the CPU, in eval mode
    data: Data
    job: Job


def run_job(
    job: Job, directory: Path, *, resume: bool = False, on_step: Callable[[StepResult], None] = lambda result: None
) -> Run:
    """Train the supernet that `job` describes, in `directory`; the run as `load_run` would give it.

    With `resume` a run that was begun there goes on, and one that was not begins. ValueError if there is a run already
    and `resume` is not said, if it was begun with other settings (its execution, and where the data lie, may be said
    anew), or if another process trains it.
    """
    job = replace(job, data=data_of(job), features=job.features.located())
    data = cached(open_data(job.data, job.train.seed, job.execution.workers), job.execution)
    family = job.family(data.family_arguments)
    if isinstance(data, ImageData) and distributed.rank() == 0:
        warn_of_few_judges(data.count(data.holdout), data.num_classes)
    count = job.train.images_to_calibrate(family.num_classes)  # config.json says how many, for search and extraction
    job = replace(job, train=replace(job.train, calibration_images=count))
    weights = directory / "supernet.safetensors"
    with owned(directory):
        begin = open_run(job, data, directory, resume)
        if distributed.from_first(lambda: resume and weights.exists() and not _has_checkpoints(directory)):
            begin()
            content = distributed.from_first(lambda: (read_config(directory), _read_weights(weights)))
            return _finished(directory, *content, space=job.space, dataset=job.data.dataset)
        net = _train(job, family, data, directory, resume, on_step, begin)
        net = net.to("cpu", memory_format=torch.contiguous_format).eval()
        begin()  # where all steps were done before, too
        if distributed.rank() == 0:
            save_weights(weights, net.state_dict())
    return Run(family, net, data, job)


def _train(
    job: Job,
    family: Family,
    data: Data,
    directory: Path,
    resume: bool,
    on_step: Callable[[StepResult], None],
    on_begin: Callable[[], None],
) -> Supernet:
    """Train at once, or phase by phase, each in a folder of its own."""
    net = family.supernet(job.train.seed, classes=data.classes, data=data)
    if job.features.unlabelled is not None:
        images = open_unlabelled_images(job.features.unlabelled, job.data, job.execution.workers)
        images = cached(images, job.execution)
        config = replace(job.train, method="sandwich", epochs=job.features.feature_epochs)
        before = config.epochs * images.steps_per_epoch(config.batch_size)
        total = before + job.train.epochs * data.steps_per_epoch(job.train.batch_size)
        distil_features(
            family,
            net,
            images,
            config,
            directory / "0-features",
            job.execution,
            normalisation=normalisation(job.space, job.space_options),
            resume=resume,
            on_step=partial(_in_all, on_step, 0, total),
            on_begin=on_begin,
        )
        on_step = partial(_in_all, on_step, before, total)
    if not job.phases:
        return train(
            family,
            net,
            data,
            job.train,
            directory,
            job.execution,
            beside=job.beside,
            resume=resume,
            on_step=on_step,
            on_begin=on_begin,
        )
    configs = [phase_config(job.train, job.phases, index) for index in range(len(job.phases))]
    total = sum(config.epochs for config in configs) * data.steps_per_epoch(job.train.batch_size)
    teacher, before = None, 0
    for index, (phase, config) in enumerate(zip(job.phases, configs)):
        space = phase_space(family.space, job.phases, index)
        method = Uniform(space, phase.subnets, teacher_weight=0.0 if teacher is None else 1.0, regularised=True)
        sort_channels(family, net, new_kinds(job.phases, index))
        net = train(
            family,
            net,
            data,
            config,
            directory / f"{index + 1}-{phase.name}",
            job.execution,
            method=method,
            teacher=teacher,
            beside=job.beside,
            resume=resume,
            on_step=partial(_in_all, on_step, before, total),
            on_begin=on_begin,
        )
        before += config.epochs * data.steps_per_epoch(config.batch_size)
        teacher = net.eval().extract(family.space.largest) if teacher is None else teacher
    return net


def _in_all(on_step: Callable[[StepResult], None], before: int, total: int, result: StepResult) -> None:
    """Report a phase's step as one of the whole training."""
    on_step(result._replace(step=before + result.step, steps=total))


def load_run(
    directory: str | Path,
    root: str | None = None,
    test_root: str | None = None,
    *,
    space: str | None = None,
    dataset: str | None = None,
) -> Run:
    """A finished run; ValueError, naming the file, if there is none or it cannot be read.

    `root` and `test_root` say where its data lie, if no longer where they did in training. `space` and `dataset` say
    its space and its dataset again, if these are code of one's own, which is not imported because a file names it; a
    dataset's function in the file of such a space need not be said if it is annotated to return a `Data`.
    """
    directory = Path(directory)
    path = directory / "supernet.safetensors"
    config = read_config(directory)
    if not path.exists():
        raise ValueError(f"{path} is missing: the run is not finished; go on with it with --resume")
    return _finished(directory, config, _read_weights(path), root, test_root, space=space, dataset=dataset)


def _finished(
    directory: Path,
    config: dict[str, Any],
    weights: Mapping[str, Tensor],
    root: str | None = None,
    test_root: str | None = None,
    *,
    space: str | None = None,
    dataset: str | None = None,
) -> Run:
    """The run in `directory`, of whose files the `config` and the `weights` are given; else as `load_run`."""
    job = _finished_job(config, directory, space)
    begun = job_from_dict(config["job"])
    job = replace(job, data=data_said_again(begun.data, begun.space, job.space, dataset, directory))
    DATASETS.warn_if_changed(job.data.dataset, config["dataset_sha256"], directory)
    family = job.family(config["family_arguments"])
    net = family.supernet(pretrained=False)
    load_weights(net, weights, str(directory / "supernet.safetensors"))
    job = replace(job, data=located(job.data, root, test_root))
    # what only a training needs may be gone
    data = open_data(replace(job.data, second_labels=None), job.train.seed, job.execution.workers)
    data.check_unchanged(config, directory)
    return Run(family, net.eval(), data, job)


def _read_weights(path: Path) -> dict[str, Tensor]:
    return read_safetensors(path)[0]


def data_of(job: Any) -> DataConfig:
    """The data of a job that has a `space` and `space_options`: at absolute places, and images normalised as the
    pretrained model wants them that the space starts from, unless the job says how."""
    data = located(job.data)
    if is_of_any_kind(data.dataset) or None not in (data.mean, data.std):
        return data
    own = normalisation(job.space, job.space_options)
    return replace(data, **{key: value for key, value in own.items() if getattr(data, key) is None})


def open_data(config: DataConfig, seed: int, workers: int | None = 0) -> Data:
    """`supernet.training.data.load_data`, where the error for images that are not there says how to name
    another place."""
    are_here = "/" not in config.dataset and not is_of_any_kind(config.dataset)  # those of hfds/NAME need not be
    for flag, place in (("--root", config.root), ("--test-root", config.test_root)):
        if are_here and place and os.path.isabs(place) and not os.path.exists(place):
            raise ValueError(f"no images at root {place!r}: say with {flag} where they lie now")
    return load_data(config, seed, workers)


def cached(data: AnyData, execution: Execution) -> AnyData:
    """`data` with decoded images in as much memory as `execution` says; ValueError if they are no images."""
    if not execution.cache_bytes:
        return data
    return only_images(data, "cache_bytes", "leave it out", several_labels=True).cached(execution.cache_bytes)


def read_family(directory: Path, *, space: str | None = None) -> Family:
    """The family of the run that was begun in `directory`, without its weights and data; ValueError if no run was.

    `space` is as in `load_run`.
    """
    config = read_config(directory)
    return _finished_job(config, directory, space).family(config["family_arguments"])


def _finished_job(config: dict[str, Any], directory: Path, space: str | None) -> Job:
    """The job of a run, with options of its space that need nothing outside of the run's folder, where it has them."""
    job = job_from_dict(config["job"])
    space = SPACES.said_again(job.space, space, directory)
    SPACES.warn_if_changed(space, config.get("space_sha256"), directory)
    return dataclasses.replace(job, space=space, space_options=config.get("space_options", job.space_options))


def data_said_again(
    data: DataConfig, begun_space: str, space: str | None, dataset: str | None, directory: Path
) -> DataConfig:
    """The `data` of the run in `directory`, whose file names the space `begun_space`, with a dataset that may be
    imported: `space` and `dataset` say it again as in `load_run`."""
    if dataset is None or not DATASETS.is_own(dataset):
        dataset = DATASETS.beside(data.dataset, begun_space, space) or dataset
    return replace(data, dataset=DATASETS.said_again(data.dataset, dataset, directory))


def read_job(directory: Path, *, space: str | None = None, dataset: str | None = None) -> Job | None:
    """The job of the run that was begun in `directory`, None if there is no run; `space` and `dataset` are as in
    `load_run`."""
    if not (directory / "config.json").exists():
        return None
    job = job_from_dict(read_config(directory)["job"])
    said = SPACES.said_again(job.space, space, directory)
    return replace(job, space=said, data=data_said_again(job.data, job.space, said, dataset, directory))


def job_from_dict(values: dict[str, Any]) -> Job:
    """The job that `dataclasses.asdict` and JSON made these values of."""
    try:
        return typed(Job, values)
    except ValueError as error:
        raise ValueError(f"this job was written by another version, or is damaged: {error}") from error


def open_run(job: object, data: Data, directory: Path, resume: bool) -> Callable[[], None]:
    """Check that a run of `job`, a dataclass, may begin or go on in `directory`, and give what writes its config.json.

    The writing is to be called when the first step is done, so that a start that fails leaves nothing which its
    repetition with better settings would be measured by. Of several processes the first one looks and writes.
    ValueError, in all of them, as `run_job` says.
    """
    path = directory / "config.json"
    content = distributed.from_first(lambda: _content(job, data, directory, path, resume))

    def write() -> None:
        if distributed.rank() == 0 and (not path.exists() or json.loads(path.read_text()) != content):
            write_files(data.files(), directory)
            write_json(path, content)

    return write


def _content(job: object, data: Data, directory: Path, path: Path, resume: bool) -> dict[str, Any]:
    """Of config.json, which lies at `path`, as JSON gives it back."""
    own = json.loads(json.dumps(dataclasses.asdict(job)))
    before = {
        "format": formats.RUN.label,
        "job": own,
        "space_options": self_contained(job.space, job.space_options),
        "space_sha256": SPACES.source_digest(job.space),
        "dataset_sha256": DATASETS.source_digest(job.data.dataset),
        "family_arguments": dict(data.family_arguments),
        "held_out": data.count(data.holdout),
    }
    after = {
        "streams": randomness.VERSION,
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "command": provenance.command(),
        "date": provenance.today(),
    }
    description = _description(data, job.data.dataset)
    if taken := sorted(description.keys() & {*before, *after}):
        raise ValueError(
            f"the description of {job.data.dataset} has the names {', '.join(taken)}, by which a run keeps something "
            "else: give them other names"
        )
    content = before | description | after
    if path.exists() and _has_traces(directory):
        if not resume:
            raise ValueError(f"{directory} holds a run already: add --resume to go on with it, or name another output")
        begun = read_config(directory)
        if changed := differences(_moved(begun["job"], own), own):
            raise ValueError(f"{directory} was begun with other settings, and can only go on with these: {changed}")
        data.check_unchanged(begun, directory)
        SPACES.warn_if_changed(job.space, begun.get("space_sha256"), directory)
        DATASETS.warn_if_changed(job.data.dataset, begun["dataset_sha256"], directory)
        if begun.get("streams", 1) < randomness.VERSION and own.get("phases"):
            logger.warning(
                "%s was begun by a version whose phases drew images and subnets otherwise: from here on they are drawn "
                "as by this one",
                directory,
            )
        content = {**begun, "job": own}
    elif path.exists() and resume:
        logger.warning("nothing is left of the training in %s but its settings: it begins anew", directory)
    return json.loads(json.dumps(content))


def _description(data: Data, dataset: str) -> dict[str, Any]:
    """What the data say of themselves; ValueError if that is no JSON."""
    try:
        return json.loads(json.dumps(dict(data.description())))
    except TypeError as error:
        raise ValueError(f"the description of {dataset} is to be kept as JSON: {error}") from error


def _moved(begun: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A job, `begun`, with its code of one's own where that lies in the job `own`, if it is the same there; and without
    the mean and deviation of images that a former version said and `own` does not, if they are the same."""
    usual = dataclasses.asdict(DataConfig().normalised)
    data = begun["data"]
    unsaid = [key for key in ("mean", "std") if own["data"].get(key) is None and data.get(key) == list(usual[key])]
    data = data | dict.fromkeys(unsaid)
    if DATASETS.same(data["dataset"], own["data"]["dataset"]):
        data = data | {"dataset": own["data"]["dataset"]}
    spaces = {
        name: own[name]
        for name in ("space", "teacher_space")
        if begun.get(name) and own.get(name) and SPACES.same(begun[name], own[name])
    }
    return begun | {"data": data} | spaces


def _has_traces(directory: Path) -> bool:
    """Whether training has left anything in the folder of a run, or of one of its phases."""
    names = ("metrics.jsonl", "supernet.safetensors")
    found = (path for name in names for pattern in (name, f"*/{name}") for path in directory.glob(pattern))
    return any(found) or _has_checkpoints(directory)


def _has_checkpoints(directory: Path) -> bool:
    return any(has_checkpoints(folder / "checkpoints") for folder in (directory, *directory.glob("*/")))


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of the run in `directory`, as of today's format; ValueError, naming it, if it cannot be read."""
    path = directory / "config.json"
    try:
        config = read_json(path, dict, "description of a run")
    except ValueError as error:
        raise ValueError(f"{directory} is no directory of a training run: {error}") from error
    if not {"job", *(() if "format" in config else IMAGES)} <= config.keys():
        raise ValueError(f"{directory} is no directory of a training run: {path} has no job, classes and images")
    config = formats.RUN.upgraded(config, config.get("format", 1), path) | {"format": formats.RUN.label}
    try:
        return typed(Content, config)
    except ValueError as error:
        raise ValueError(f"{directory} is no directory of a training run: in {path}, {error}") from error
