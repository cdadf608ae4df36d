"""Train an extracted subnet on, with or without a teacher.

    supernet finetune --subnet subnets/mine --run runs/mine --output subnets/tuned
    supernet finetune --subnet subnets/mine --run runs/mine --output subnets/tuned --teacher subnets/big --kl 1
    supernet finetune --subnet subnets/mine --recipe cifar10 --root other_images/ --output subnets/transferred
    supernet finetune --subnet subnets/mine --run runs/mine --output subnets/mine8 --precision int8
    supernet finetune --subnet subnets/mine --run runs/mine --output subnets/gated --gates 1 --teacher subnets/mine \
        --labels 0 --kl 1 --ema-decay None

By default with a tenth of the run's or the recipe's learning rate, for a fifth of its epochs, without warm-up. Images
are prepared as the subnet has it, those of a dataset of your own as that has it. Where they have other classes, by
name, the classifier starts anew; where they have the same in another order, it is put into that order. Prints the
accuracy on the test images before and after; writes the output folder as `supernet extract` does, and the run in
training/ within it. With --peers and --mutual other subnets go on beside it, and they learn from each other (supernet
train-standalone). With --precision int8 weights and activations are rounded in training, and model.int8.onnx computes
what was trained; model.safetensors has the rounded weights, and model.onnx computes on them in float. With
--gates the channels whose gates close are taken away (docs/methods/pruning.md). Seconds for digits.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from compress.fine_tuning import FineTuningJob, run_fine_tuning
from compress.quantisation.limits import Batches
from compress.quantisation.training import INT8_FILE
from compress.sensitivity import logits
from supernet.artifacts.export import onnx_runner
from supernet.artifacts.runs import open_data
from supernet.artifacts.subnet_config import read_subnet_config
from supernet.families.named import SPACES
from supernet.training.data.batch import joined
from supernet.training.data.named import is_of_any_kind
from supernet.training.standalone import ModelJob, model_settings
from supernet_cli.model_training import Arguments, as_kind, parse, say, train, within


@dataclass(frozen=True)
class FineTuning(Arguments):
    job: Annotated[FineTuningJob, tyro.conf.arg(name="")]


def main() -> None:
    finetune(parse(FineTuning, __doc__, fine_tuning, FineTuningJob))


def finetune(arguments: FineTuning) -> None:
    """What the command does."""
    if arguments.subnet is None:
        raise ValueError("say which subnet to train on: --subnet FOLDER")
    train(arguments, run_fine_tuning)
    trained = within(arguments.output) / INT8_FILE
    if arguments.job.precision == "int8" and trained.exists():  # in the first process
        take_along(trained, arguments)


def take_along(trained: Path, arguments: FineTuning) -> None:
    """Put the file in int8 beside the model, and say what it is worth."""
    file = arguments.output / INT8_FILE
    trained.replace(file)
    data = open_data(arguments.job.data, arguments.job.train.seed, arguments.job.execution.workers)
    size = read_subnet_config(arguments.output).input_size
    batches: Batches = list(data.evaluation_batches(data.test, size and size[-1]))
    task = read_subnet_config(arguments.output).family().task
    say(f"{file}", task.metrics([logits(onnx_runner(file), batches)], [joined(batches)]))


def fine_tuning(job, known) -> FineTuningJob:
    return as_kind(FineTuningJob, settings(job, known))


def settings(job, known) -> ModelJob:
    """The subnet's architecture and weights, and a shorter and gentler training."""
    train = model_settings(job.train)
    train = dataclasses.replace(train, epochs=max(1, train.epochs // 5), lr=train.lr / 10, warmup_epochs=0.0)
    if known.subnet is None:
        return ModelJob(job.space, job.space_options, data=job.data, train=train, execution=job.execution)
    config = read_subnet_config(known.subnet)
    if config.input_size is None:
        raise ValueError(
            f"fine-tuning needs images with classes, and the subnet in {known.subnet} takes "
            f"{', '.join(config.input_names)}: train a supernet whose space is that one architecture"
        )
    data = job.data if is_of_any_kind(job.data.dataset) else config.preparing(job.data)
    arch = json.dumps(config.arch)
    return ModelJob(
        SPACES.said_again(config.space, known.space, known.subnet),
        config.space_options,
        arch,
        start=str(known.subnet),
        data=data,
        train=train,
        execution=job.execution,
    )
