"""Show which kinds of layers may be in few bits: what a network loses with the weights of one kind alone rounded.

    supernet sensitivity --subnet subnets/mine --run runs/mine
    supernet sensitivity --subnet vit_tiny_patch16_224 --recipe alphanet --root imagenet/ --bits 8 4 --json kinds.json

Kinds are queries, keys, values and outputs of attention, MLPs, normalisations, embeddings, convolutions and the head;
of images and of texts. Told are points of held-out accuracy that are lost, with the standard error, and the divergence
from the answers in float. Activations stay in float; nothing is trained. For each kind and number of bits the held-out
examples are passed once: seconds for digits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Column, Table

from compress.kinds import KindSensitivity, kind_sensitivities
from supernet.artifacts import provenance
from supernet.artifacts.atomic import write_json
from supernet.artifacts.deployment import deployed
from supernet.artifacts.runs import open_data
from supernet.conditions import ABSENT, only_where, unread
from supernet.tasks import Classification
from supernet.training.data import DataConfig, ImageData
from supernet.training.data.batch import take
from supernet.training.data.config import TRAINING
from supernet_cli.command_line import console
from supernet_cli.evaluate import opened
from supernet_cli.flags import parse_flags
from supernet_cli.model_training import said_job


@dataclass(frozen=True)
class Arguments:
    data: Annotated[DataConfig, tyro.conf.arg(name=""), unread(*TRAINING)]
    subnet: str
    """Folder of a saved subnet, NAME=FILE or NAME of a timm model."""
    bits: tuple[int, ...] = (8, 4, 3, 2)
    """Numbers of bits, from 2 to 16."""
    recipe: Annotated[str, only_where(run=ABSENT)] = "digits"
    """Recipe that says which examples."""
    run: Path | None = None
    """Folder of a supernet's training run that says so instead."""
    space: str | None = None
    """The space of the subnet and of the run, said again if it is code of your own: path/to/file.py:function."""
    input_size: int | None = None
    """Pixels a side of a timm model's images; by default the model's own."""
    examples: int = 2000
    """Held-out examples that it is judged on, at most."""
    workers: int = 0
    """Processes that load images; 0 loads in this one."""
    seed: int = 0
    """Seed of the training run, which the split into parts follows from."""
    json: Path | None = None
    """File for the figures."""


def main() -> None:
    job = said_job(Arguments)
    default = Arguments(job.data, tyro.MISSING, seed=job.train.seed, workers=job.execution.workers)
    sensitivity(parse_flags(Arguments, __doc__, default=default, omit_prefixes=True))


def sensitivity(arguments: Arguments) -> None:
    """What the command does."""
    if arguments.examples < 2:
        raise ValueError(f"examples are at least 2, not {arguments.examples}")
    data = open_data(arguments.data, arguments.seed, arguments.workers)
    subnet = opened(arguments.subnet, data, arguments.input_size, arguments.space)
    task = subnet.config.family().task
    if not isinstance(task, Classification):
        raise ValueError(f"sensitivity is judged by classes, and {arguments.subnet} tells something else")
    size = None
    if isinstance(data, ImageData):
        data = dataclasses.replace(data, config=subnet.config.preparing(data.config))
        size = subnet.config.input_size[-1]
    batches = list(take(data.evaluation_batches(data.holdout, size), arguments.examples))
    found = list(kind_sensitivities(deployed(subnet.model), batches, task, arguments.bits))
    console.print(table(found, f"{sum(len(labels) for _, labels in batches)} held-out examples"))
    if arguments.json:
        content = {
            "command": provenance.command(),
            "date": provenance.today(),
            "versions": provenance.versions(),
            "sensitivities": [dataclasses.asdict(own) for own in found],
        }
        write_json(arguments.json, content)


def table(found: Sequence[KindSensitivity], where: str) -> Table:
    """A line a kind, with what it loses in each number of bits."""
    bits = list(dict.fromkeys(own.bits for own in found))
    columns = [Column(f"{count} bits", justify="right") for count in bits]
    shown = Table("kind", Column("weights", justify="right"), *columns, title=f"Points lost on {where} (divergence)")
    for kind in dict.fromkeys(own.kind for own in found):
        own = {one.bits: one for one in found if one.kind == kind}
        cells = [f"{one.points:.2f} ± {one.standard_error:.2g} ({one.divergence:.2g})" for one in map(own.get, bits)]
        shown.add_row(kind, f"{own[bits[0]].weights:,}", *cells)
    return shown
