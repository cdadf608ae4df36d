"""Train a supernet.

    supernet train                      # digits, two minutes on 2 cores
    supernet train --recipe cifar10 --root images/ --output runs/mine
    supernet train --config runs/mine/train.yaml --seed 1 --output runs/again
    supernet train --output runs/mine --resume
    supernet train --recipe distil_features --pretrained dino.safetensors --unlabelled photos/ --root images/
    supernet train --space mine.py:family --dataset mine.py:points --output runs/points
    torchrun --nproc-per-node 8 -m supernet_cli train --recipe alphanet --root imagenet/ --output runs/alphanet
    supernet train --recipe alphanet --root /imagenet --cluster auto --cluster-workers 16 --gpus-per-worker 1
    supernet train --recipe cifar10 --root images/ --find-lr 100
    supernet train --list-spaces

A recipe sets everything, any flag overrides it; `--help` shows each flag with its unit and the recipe's value. Writes
the output folder (see supernet/artifacts/runs.py); by its train.yaml, --config begins the same training again. With
--resume it goes on with the run in that folder, by its own settings; where its images lie (--root, --test-root) and how
it is executed (--device, --workers, --log-steps, ...) may be said anew. A training that was stopped before its first
step was done is started without --resume. A dataset that is code of your own has none of the recipe's settings of
images.

With --cluster the workers of a Ray cluster train, and the output folder is written at the end. A training goes on by
itself when a worker was lost; when this command was lost, give it again, with all its flags and --resume.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from supernet.artifacts.runs import Job, read_job, run_job
from supernet.conditions import ABSENT, only_where
from supernet.families import FAMILIES, describe
from supernet.families.named import SPACES, find_family
from supernet.training import distributed
from supernet.training.cluster import Cluster, run_on_cluster
from supernet.training.data.named import DATASETS
from supernet.training.execution import Execution
from supernet.training.features import FeatureConfig
from supernet.training.loop import StepResult
from supernet.training.methods.progressive import Phase
from supernet.training.step import TrainConfig
from supernet_cli.command_line import console, recipe_of, to_resume
from supernet_cli.find_lr import find_lr
from supernet_cli.flags import known_beforehand, noting_flags, parse_flags, write_flags
from supernet_cli.training_progress import training_progress

FLAGS = "train.yaml"  # in a run's folder


@dataclass(frozen=True)
class Flags(Job):
    """A job of which the command line may set all but the phases."""

    phases: Annotated[tuple[Phase, ...], tyro.conf.Suppress] = ()


@dataclass(frozen=True)
class Arguments:
    job: Annotated[Flags, tyro.conf.arg(name="")]
    ray: Annotated[Cluster, tyro.conf.arg(name=""), only_where(find_lr=ABSENT)] = field(default_factory=Cluster)
    recipe: str = "digits"
    """Recipe that sets what the other flags do not."""
    pretrained: str | None = None
    """File of weights that the largest subnet starts from, in spaces that take one (--list-spaces): their option
    `pretrained`."""
    output: Path | None = None
    """Folder of the run; by default runs/ and the recipe's name."""
    resume: bool = False
    """Go on with the run in the output folder."""
    find_lr: int | None = None
    """Steps, such as 100, of a range test in place of the training: the learning rate grows from 1e-5 to 10, and the
    one where the loss falls fastest is printed. Writes lr.csv and lr.svg to the output folder."""
    list_spaces: bool = False
    """Print the search spaces and end."""


def main() -> None:
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--recipe", default="digits")
    first.add_argument("--output", type=Path)
    first.add_argument("--resume", action="store_true")
    first.add_argument("--space")
    first.add_argument("--dataset")
    first.add_argument("--cluster")
    known = known_beforehand(first, Arguments)
    recipe = known.recipe
    if known.resume and known.cluster is None:
        read = partial(read_job, space=known.space, dataset=known.dataset)
        job = to_resume(known.output or Path("runs") / recipe, read)
    else:
        job = recipe_of(recipe, known.dataset)
    default = Arguments(Flags(**vars(job)), recipe=recipe)
    arguments = parse_flags(Arguments, __doc__, default=default, omit_prefixes=True)
    if arguments.list_spaces:
        list_spaces()
        return
    output = arguments.output or Path("runs") / recipe
    job = Job(**vars(arguments.job))
    if arguments.pretrained is not None:
        job = started_from(arguments.pretrained, job)
    if arguments.find_lr is not None:
        find_lr(partial(train_by, job), job.train, job.execution, arguments.find_lr, output)
        return
    if arguments.ray.cluster is not None:
        run_on_cluster(job, output, arguments.ray, resume=arguments.resume)
        write_flags(output / FLAGS, arguments, omit_prefixes=True)
        again = said_again(read_job(output, space=job.space, dataset=job.data.dataset))
        console.print(f"The supernet is in {output}.")
        console.print(f"Next: supernet search --run {output}{again}", soft_wrap=True)
        return
    with (
        distributed.joined(job.execution.device),
        training_progress(disable=distributed.rank() != 0) as show,
    ):
        on_step = noting_flags(output / FLAGS, arguments, show, omit_prefixes=True)
        trained = run_job(job, output, resume=arguments.resume, on_step=on_step)
        is_first = distributed.rank() == 0
    if not is_first:
        return
    console.print(f"The supernet is in {output}: {trained.net.space.size:.3g} architectures in one set of weights.")
    console.print(f"Next: supernet search --run {output}{said_again(trained.job)}", soft_wrap=True)


def takes_weights(function: Callable) -> bool:
    """Whether the spaces that a family's function makes start from weights in a file: its option `pretrained`."""
    return "pretrained" in signature(function).parameters


def train_by(
    job: Job, config: TrainConfig, execution: Execution, directory: Path, on_step: Callable[[StepResult], None]
) -> None:
    """Train on labels at once, by another configuration and execution."""
    run_job(replace(job, train=config, execution=execution, features=FeatureConfig()), directory, on_step=on_step)


def started_from(weights: str, job: Job) -> Job:
    """`job` with the weights in a file as those that its space starts from."""
    function = find_family(job.space)
    if function in FAMILIES.values() and not takes_weights(function):
        those = ", ".join(name for name, other in FAMILIES.items() if takes_weights(other))
        raise ValueError(f"the space {job.space!r} starts from no file of weights; those that do are {those}")
    try:
        options = json.loads(job.space_options) | {"pretrained": weights}
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"the options of a space are a JSON object, not {job.space_options!r}") from error
    return replace(job, space_options=json.dumps(options))


def said_again(job: Job) -> str:
    """The flags by which code of one's own is named to whoever reads the run."""
    named = ((SPACES, job.space), (DATASETS, job.data.dataset))
    return "".join(f" --{kind.flag} {name}" for kind, name in named if kind.is_own(name))


def list_spaces() -> None:
    table = Table("space", "architectures", "MACs (M)", "parameters (M)", "--pretrained", "paper")
    for name in (*FAMILIES, *SPACES.installed()):
        function = find_family(name)
        weights = "FILE" if takes_weights(function) else ""
        try:
            signature(function).bind()
        except TypeError as error:  # one that is installed, and depends on options or on what data say
            table.add_row(name, "?", "?", "?", weights, str(error))
            continue
        found = describe(name, function())
        macs = " to ".join(f"{count / 1e6:.4g}" for count in found.macs)
        parameters = " to ".join(f"{count / 1e6:.3g}" for count in found.parameters)
        table.add_row(name, f"{found.size:.3g}", macs, parameters, weights, found.paper)
    console.print(table)
