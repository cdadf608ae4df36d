"""Train one model from scratch, without a supernet, and by a teacher if you like.

    python scripts/train_standalone.py --subnet subnets/mine --run runs/mine --output models/mine
    python scripts/train_standalone.py --model resnet18 --recipe cifar10 --root images/ --output models/big
    python scripts/train_standalone.py --space ofa_mobilenet_v3 --arch '{"resolution": 128, ...}' --output models/other
    python scripts/train_standalone.py --model tinynet_e --input-size 64 --teacher models/big --kl 1 --attention 1000 \
        --recipe cifar10 --root images/ --output models/student

The first line asks what the supernet's weights are worth: it trains the architecture of the saved subnet on the same
images with the same settings as the supernet, and prints both accuracies. A student is any timm model or any
architecture, a teacher any timm model or saved subnet; the losses are those of distill/, each with its weight. Teacher
assistants and born-again networks are this command again, with the model before as the teacher.

Writes the output folder as scripts/extract.py does, and the run in training/ within it. Digits take half a minute on
2 cores.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from model_training import Arguments, parse, run, train

from supernet.standalone import ModelJob, model_settings
from supernet.subnet import read_subnet_config


@dataclass(frozen=True)
class Standalone(Arguments):
    model: str | None = None
    """Train this timm model."""
    input_size: int | None = None
    """Pixels a side of its images; by default the model's own."""


def main() -> None:
    arguments = parse(Standalone, __doc__, settings, "--model", "--input-size")
    if arguments.model is not None and arguments.subnet is not None:
        raise ValueError("say either --model or --subnet: they name two architectures to train")
    train(arguments)


def settings(job, known) -> ModelJob:
    """The largest architecture of the recipe's space, that of the subnet, or the timm model."""
    space, options, arch = job.space, job.space_options, None
    if known.subnet is not None:
        config = read_subnet_config(known.subnet)
        space, options, arch = config.space, config.space_options, json.dumps(config.arch)
    elif known.model is not None:
        size = {} if known.input_size is None else {"input_size": int(known.input_size)}
        space, options = "timm", json.dumps({"name": known.model, **size})
    return ModelJob(space, options, arch, data=job.data, train=model_settings(job.train))


if __name__ == "__main__":
    run(main)
