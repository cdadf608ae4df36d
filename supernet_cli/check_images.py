"""Read every image of a dataset once, and list those that cannot be read.

    supernet check-images --root images/
    supernet check-images --run runs/mine

Training ends at the first image that is broken; this names all of them beforehand, in the parts to train on, to judge
by and to test on. A line each, and exit code 2 if there are any. A photograph of 270 x 256 pixels takes 1.5 ms of a
core, a larger one as much more as it is larger.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from supernet.artifacts.runs import job_from_dict, read_config
from supernet.conditions import ABSENT, only_where, unread
from supernet.training.data import DataConfig, open_images
from supernet.training.data.config import TRAINING
from supernet.training.data.datasets import broken_images
from supernet.training.data.loading import workers_for
from supernet.training.execution import Execution
from supernet_cli.command_line import console, progress_bar
from supernet_cli.flags import parse_flags


@dataclass(frozen=True)
class Arguments:
    data: Annotated[DataConfig, tyro.conf.arg(name=""), only_where(run=ABSENT), unread(*TRAINING)] = field(
        default_factory=lambda: DataConfig("folder")
    )
    run: Path | None = None
    """Folder of a training run whose images to check instead."""
    workers: int | None = Execution.workers
    """Processes that load images; 0 loads in this one, None is as many as seem right."""


def main() -> None:
    arguments = parse_flags(Arguments, __doc__, omit_prefixes=True)
    config = arguments.data
    if arguments.run is not None:
        config = job_from_dict(read_config(arguments.run)["job"]).data
    data = open_images(config)
    parts = (data.train, data.holdout, data.test)
    count, broken = 0, 0
    with progress_bar() as progress:
        task = progress.add_task("Reading", total=sum(map(len, parts)), note="")
        for part in parts:
            workers = workers_for(len(part)) if arguments.workers is None else arguments.workers
            for error in broken_images(part, workers):
                count += 1
                if error is not None:
                    broken += 1
                    progress.console.print(error, highlight=False, markup=False, soft_wrap=True)
                progress.update(task, completed=count)
    if broken:
        raise ValueError(f"{broken} of {count} images cannot be read: repair, convert or remove them")
    console.print(f"All {count} images can be read.", highlight=False)
