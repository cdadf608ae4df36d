"""What the commands about single models have in common: flags, the training, and what is said at its end."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import torch
import tyro

from distill.accompanied import Beside
from supernet.artifacts.runs import Job, data_said_again, job_from_dict, open_data, read_config
from supernet.artifacts.subnet import Subnet, load_subnet, save_subnet
from supernet.artifacts.subnet_config import read_subnet_config
from supernet.conditions import ABSENT, GIVEN, only_where
from supernet.evaluation import evaluate
from supernet.families.named import SPACES
from supernet.training import distributed
from supernet.training.data import ImageData
from supernet.training.data.named import settings_for
from supernet.training.execution import pick_device, tf32
from supernet.training.standalone import AnyModelJob, ModelJob, model_settings, read_model_job, run_model_job
from supernet_cli.command_line import console, recipe_of, to_resume
from supernet_cli.find_lr import find_lr
from supernet_cli.flags import known_beforehand, noting_flags, parse_flags
from supernet_cli.training_progress import training_progress


@dataclass(frozen=True)
class Arguments:
    job: Annotated[ModelJob, tyro.conf.arg(name="")]
    output: Path
    """Folder for the model; its run goes to training/ in it."""
    recipe: Annotated[str, only_where(run=ABSENT, resume=ABSENT)] = "digits"
    """Recipe that sets what the other flags do not."""
    run: Annotated[Path | None, only_where(resume=ABSENT)] = None
    """Folder of a supernet's training run whose images and settings set it instead."""
    subnet: Path | None = None
    """Folder of a saved subnet."""
    resume: bool = False
    """Go on with the training in the output folder, by its own settings; where images lie and how it is executed may be
    said anew."""
    find_lr: int | None = None
    """Steps, such as 100, of a range test in place of the training: the learning rate grows from 1e-5 to 10, and the
    one where the loss falls fastest is printed. Writes lr.csv and lr.svg to the folder of the run."""
    onnx: Annotated[bool, only_where(find_lr=ABSENT)] = True
    """Write model.onnx too."""


@dataclass(frozen=True)
class FromScratch(Arguments):
    model: Annotated[str | None, only_where(resume=ABSENT)] = None
    """Train this timm model."""
    input_size: Annotated[int | None, only_where(model=GIVEN, resume=ABSENT)] = None
    """Pixels a side of its images; by default the model's own."""


AnyArguments = TypeVar("AnyArguments", bound=Arguments)
Settings = Callable[[Job, argparse.Namespace], ModelJob]  # of a recipe's or a run's job and the flags known so far


def within(output: Path) -> Path:
    """Where the run of a training lies whose model is in the folder `output`."""
    return output / "training"


def parse(
    kind: type[AnyArguments],
    description: str,
    settings: Settings,
    job_kind: type[ModelJob] = ModelJob,
    run_of: Callable[[Path], Path] = within,
) -> AnyArguments:
    """The command line as `kind`; `settings` gives the job, a `job_kind`, that its other flags change, and `run_of`
    where the run for an output lies."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # --teacher is not --teacher-space
    parser.add_argument("--recipe", default=Arguments.recipe)
    parser.add_argument("--resume", action="store_true")
    for flag in ("--output", "--run", "--subnet"):
        parser.add_argument(flag, type=Path)
    for flag in ("--space", "--dataset", "--teacher-space"):
        parser.add_argument(flag)
    if issubclass(kind, FromScratch):
        parser.add_argument("--model")
        parser.add_argument("--input-size", type=int)
    known = known_beforehand(parser, kind)
    if known.resume and known.output:
        again = {name: getattr(known, name) for name in ("space", "dataset", "teacher_space")}
        job = to_resume(run_of(known.output), partial(read_model_job, kind=job_kind, **again))
    else:
        job = settings(job_of(known.run, known.recipe, known.space, known.dataset), known)
    default = kind(job, output=tyro.MISSING, recipe=known.recipe)
    return parse_flags(kind, description, default=default, omit_prefixes=True)


def from_scratch(job: Job, known: argparse.Namespace) -> ModelJob:
    """Train what the flags name: the architecture of a subnet, a timm model, or else the largest of the space."""
    if known.model is not None and known.subnet is not None:
        raise ValueError("say either --model or --subnet: they name two architectures to train")
    space, options, arch = job.space, job.space_options, None
    if known.subnet is not None:
        config = read_subnet_config(known.subnet)
        space = SPACES.said_again(config.space, known.space, known.subnet)
        options, arch = config.space_options, json.dumps(config.arch)
    elif known.model is not None:
        size = {} if known.input_size is None else {"input_size": known.input_size}
        space, options = "timm", json.dumps({"name": known.model, **size})
    elif known.run is not None:
        space = SPACES.said_again(space, known.space, known.run)
    return ModelJob(space, options, arch, data=job.data, train=model_settings(job.train), execution=job.execution)


def as_kind(kind: type[AnyModelJob], job: ModelJob) -> AnyModelJob:
    """`job` with what jobs of that `kind` have besides, by its defaults."""
    return kind(**{field.name: getattr(job, field.name) for field in dataclasses.fields(job)})


def said_job(kind: type) -> Job:
    """The job that --run or --recipe on the command line of `kind` names, whose other flags the command parses;
    --space and --dataset say again what of it is code of one's own."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", default=Arguments.recipe)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--space")
    parser.add_argument("--dataset")
    known = known_beforehand(parser, kind)
    return job_of(known.run, known.recipe, known.space, known.dataset)


def job_of(run_folder: Path | None, recipe: str, space: str | None = None, dataset: str | None = None) -> Job:
    """The job of a supernet's training run, or else of a recipe; ValueError if there is none.

    `space` and `dataset` say again what is code of one's own: the run's data are then those that may be imported. If
    `dataset` is another one that may be of any kind, nothing is kept of the settings of images.
    """
    if run_folder is None:
        return recipe_of(recipe, dataset)
    job = job_from_dict(read_config(run_folder)["job"])
    data = settings_for(dataset, job.data)
    if data is job.data:
        data = data_said_again(data, job.space, space, dataset, run_folder)
    # what companions learnt is the run's own
    return replace(job, data=replace(data, second_labels=None), beside=Beside())


def train(arguments: Arguments, run_job: Callable[..., Subnet] = run_model_job) -> None:
    """Train and save the model, and say what it is worth beside the subnet that it is to be compared with."""
    output = arguments.output
    if (output / "config.json").exists():
        raise ValueError(f"{output} holds a model already; name another folder")
    subnet = run_with_progress(arguments, within(output), run_job)
    if subnet is None:
        return
    data = open_data(arguments.job.data, arguments.job.train.seed, arguments.job.execution.workers)
    assert isinstance(data, ImageData)  # or they had not trained a single model
    device = pick_device(arguments.job.execution.device)
    found = on_test_images(subnet, data, device)
    subnet.config.facts.update(found)
    save_subnet(output, subnet, onnx=arguments.onnx)
    space = arguments.job.space
    if arguments.subnet is not None:
        say(f"{arguments.subnet}", on_test_images(load_subnet(arguments.subnet, space=space), data, device))
    say(f"{output}", found)
    for peer in sorted((within(output) / "peers").glob("*")):
        say(f"{peer}", on_test_images(load_subnet(peer, space=space), data, device))


def run_with_progress(arguments: Arguments, directory: Path, run_job: Callable[..., Subnet]) -> Subnet | None:
    """The network that `run_job` gives for the job, with its run in `directory`; None but in the first process, and
    where a learning rate is looked for instead."""
    if arguments.find_lr is not None:
        job = arguments.job

        def train_by(config, execution, directory, on_step):
            run_job(replace(job, train=config, execution=execution), directory, on_step=on_step)

        find_lr(train_by, job.train, job.execution, arguments.find_lr, directory)
        return None
    with (
        distributed.joined(arguments.job.execution.device),
        training_progress(disable=distributed.rank() != 0) as show,
    ):
        on_step = noting_flags(directory / "train.yaml", arguments, show, omit_prefixes=True)
        subnet = run_job(arguments.job, directory, resume=arguments.resume, on_step=on_step)
        return subnet if distributed.rank() == 0 else None


def on_test_images(subnet: Subnet, data: ImageData, device: torch.device) -> dict[str, float] | None:
    """The metrics of the network on the test images, computed on `device`; None if it tells other classes apart."""
    if subnet.config.classes != data.classes:
        return None
    with tf32(False):
        batches = data.evaluation_batches(data.test, subnet.config.input_size[-1])
        found = evaluate(subnet.model.to(device), subnet.config.family().task, batches)
    subnet.model.cpu()
    return found


def say(name: str, found: dict[str, float] | None) -> None:
    text = "has other classes"
    if found is not None:
        others = (f"{metric} {value:.4g}" for metric, value in found.items() if metric != "accuracy")
        right = [f"{found['accuracy']:.2%} of the test images are right"] if "accuracy" in found else []
        text = ", ".join([*right, *others])
    console.print(f"{name}: {text}", highlight=False, soft_wrap=True)
