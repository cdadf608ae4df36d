"""What commands have in common: one clear line for bad input, progress bars, reports, and whose subnets to measure."""

from __future__ import annotations

import dataclasses
import errno
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import torch
import tyro
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from supernet.artifacts.atomic import NO_SPACE, full_disk
from supernet.artifacts.runs import Job, read_family
from supernet.errors import first_line
from supernet.families import Family
from supernet.families.named import SPACES, make_family
from supernet.training.data.named import settings_for
from supernet.training.distributed import LostProcess
from supernet.training.loop.divergence import TrainingError
from supernet.training.loop.signals import Stopped
from supernet.training.recipes import RECIPES

console = Console()
Begun = TypeVar("Begun")
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
DeviceFlag = Annotated[
    str,
    tyro.conf.arg(help="Where networks run for what they are judged by: cpu, cuda or cuda:N; auto takes a GPU if any."),
]
GpusFlag = Annotated[
    float,
    tyro.conf.arg(help="Part of a GPU, from 0 to 1, that each Ray worker has, and networks run on; 0 for CPUs alone."),
]


def run_and_exit(main: Callable[[], None]) -> NoReturn:
    """Run a command's `main` and exit: with code 2 and one line for bad input, 1 for a failure, 130 for Ctrl-C and 143
    for SIGTERM."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(show_path=False)])
    try:
        main()
    except (ValueError, ModuleNotFoundError) as error:
        fail(str(error), 2)
    except (FileExistsError, NotADirectoryError) as error:
        fail(f"{error.filename} is a file where a folder has to be: name another", 2)
    except torch.OutOfMemoryError as error:
        fail(f"the GPU's memory is too small, lower --batch-size: {first_line(error)}", 1)
    except (TrainingError, LostProcess) as error:
        fail(str(error), 1)
    except OSError as error:
        if error.errno in DENIED:
            fail(f"{error.filename} may not be used ({error.strerror}): name another place, or change its rights", 1)
        fail(full_disk(Path.cwd()) if error.errno in NO_SPACE else str(error), 1)
    except Stopped as error:
        fail(f"{error}: --resume goes on from there", 128 + error.number)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    sys.exit(0)


def to_resume(folder: Path, read: Callable[[Path], Begun | None]) -> Begun:
    """The job of the run in `folder`, as `read` gives it; ValueError if there is none to go on with."""
    job = read(folder)
    if job is None:
        raise ValueError(f"there is nothing to resume in {folder}: start without --resume, or name another folder")
    return job


def report(folder: Path) -> None:
    """Write the report of the search or sweep in `folder`; if that cannot be done, without plotly say, tell why."""
    from search.report import write_report

    path = folder / "report.html"
    try:
        write_report(path, [folder])
    except (ModuleNotFoundError, ValueError) as error:
        console.print(f"There is no report: {error}", highlight=False, markup=False)
    else:
        console.print(f"Open {path} in a browser to look at all of it.", highlight=False, markup=False, soft_wrap=True)


def family_of(run: Path | None, space: str | None, options: str, num_classes: int) -> Family:
    """The family of a training run, or else the one of that name; with a run, `space` says again what is code of one's
    own."""
    if not one_of(run, space):
        raise ValueError("say whose subnets: --run, the folder of a training run, or --family, the name of a space")
    return make_family(space, options, {"num_classes": num_classes}) if run is None else read_family(run, space=space)


def one_of(run: Path | None, space: str | None) -> bool:
    """Whether a run or a space is named, and not both, unless `space` says the run's again, which is code of one's
    own."""
    return (run is None) != (space is None) or (run is not None and SPACES.is_own(space))


def recipe_of(name: str, dataset: str | None = None) -> Job:
    """The job of the recipe `name`, without its settings of images if `dataset` may be something else; ValueError if
    there is no such recipe."""
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; the recipes are {', '.join(RECIPES)}")
    job = RECIPES[name]()
    return dataclasses.replace(job, data=settings_for(dataset, job.data))


def fail(message: str, code: int) -> NoReturn:
    """End the process with one line on standard error: of what a worker process raised, the last."""
    print(f"error: {message.strip().splitlines()[-1] if message.strip() else message}", file=sys.stderr)
    sys.exit(code)


def progress_bar(disable: bool = False) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=disable,
    )
