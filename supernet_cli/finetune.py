"""Train an extracted subnet on, with or without a teacher.

    supernet finetune --subnet subnets/mine --run runs/mine --output subnets/tuned
    supernet finetune --subnet subnets/mine --run runs/mine --output subnets/tuned --teacher subnets/big --kl 1
    supernet finetune --subnet subnets/mine --recipe cifar10 --root other_images/ --output subnets/transferred

By default with a tenth of the run's or the recipe's learning rate, for a fifth of its epochs, without warm-up. Images
are prepared as the subnet has it, those of a dataset of your own as that has it. Where they have other classes, by
name, the classifier starts anew; where they have the same in another order, it is put into that order. Prints the
accuracy on the test images before and after; writes the output folder as `supernet extract` does, and the run in
training/ within it. With --peers and --mutual other subnets go on beside it, and they learn from each other (supernet
train-standalone). Seconds for digits.
"""

from __future__ import annotations

import dataclasses
import json

from supernet.artifacts.subnet_config import read_subnet_config
from supernet.families.named import SPACES
from supernet.training.data.named import is_of_any_kind
from supernet.training.standalone import ModelJob, model_settings
from supernet_cli.model_training import Arguments, parse, train


def main() -> None:
    arguments = parse(Arguments, __doc__, settings)
    if arguments.subnet is None:
        raise ValueError("say which subnet to train on: --subnet FOLDER")
    train(arguments)


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
    data = job.data
    if not is_of_any_kind(data.dataset):
        shared = {name: getattr(config, name) for name in ("mean", "std", "interpolation", "crop_pct")}
        data = dataclasses.replace(data, **shared)
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
