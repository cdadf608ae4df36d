"""Train a supernet by several methods, learning rates, spaces and seeds, and search each, with Ray Tune.

    supernet sweep-trainings --run runs/digits --methods sandwich spos --lrs 0.2 0.4 --seeds 0 1
    supernet sweep-trainings --run runs/mine --spaces alphanet ofa_mobilenet_v3 --gpus-per-worker 1 --threads 16
    supernet sweep-trainings --run runs/mine --lrs 0.1 0.2 --resume

There is a trial for each of methods x learning rates x spaces x seeds: it trains a supernet, in all else as the run was
trained, and searches it once, by accuracy (or the first metric of another task) and MACs. Without `--address`, Ray
starts on this machine, with a trial on each `--threads` CPUs and `--gpus-per-worker` GPUs, on which it trains as well.
A trial whose worker dies goes on from its checkpoints and its history, and so does a sweep that was killed, with
`--resume`; in a storage that is an address (s3://, ...) a training begins anew.

Writes OUTPUT/trials.csv, one row a trial with the folder of its run in the storage, OUTPUT/trials/ (every evaluation),
and OUTPUT/front_macs.csv, the best of all trials.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from search.loop import Generation
from search.run import run_search
from search.settings import SearchJob
from search.strategies import check_strategy
from search.sweep import HISTORIES, RUN, TrialSettings, folder_of, run_sweep, write_sweep
from search.trainings import COST, check_training, training_job, trainings
from supernet.artifacts.runs import Job, open_data, read_job, run_job
from supernet.own_code import absolute
from supernet.training.execution import Execution, located, worker_device
from supernet_cli.command_line import DeviceFlag, GpusFlag, console, fail
from supernet_cli.flags import parse_flags, write_flags
from supernet_cli.sweeping import check_named_once, watched


@dataclass(frozen=True)
class Arguments:
    run: Path
    """Folder of the training run whose settings hold but for those below."""
    methods: tuple[str, ...] = ()
    """Methods, see supernet train --method; by default that of the run."""
    lrs: tuple[float, ...] = ()
    """Learning rates; by default that of the run."""
    spaces: tuple[str, ...] = ()
    """Search spaces; by default that of the run."""
    seeds: tuple[int, ...] = (0,)
    """Seeds, of the training and the search."""
    strategy: str = "evolution"
    """One of search.strategies.STRATEGIES."""
    evaluations: int = SearchJob.evaluations
    """Architectures to evaluate in a search."""
    population: int | None = SearchJob.population
    """Architectures in a generation, no more than are evaluated; by default 100."""
    images: int | None = SearchJob.images
    """Held-out images that judge an architecture; by default all."""
    calibration_images: int | None = SearchJob.calibration_images
    """Training images for BatchNorm; by default as in training."""
    name: str = "trainings"
    """Name of the sweep, a folder in the storage."""
    storage: str | None = None
    """Folder or address (s3://, ...) for the trials; by default that of the run."""
    output: Path | None = None
    """Folder for the tables; by default RUN/NAME."""
    device: DeviceFlag = Execution.device
    threads: int = 1
    """CPU threads of a trial."""
    gpus_per_worker: GpusFlag = 0.0
    workers: int | None = None
    """Trials at a time; by default as many as the CPUs and GPUs allow."""
    address: str | None = None
    """Ray cluster to join, such as auto; by default one is started on this machine."""
    resume: bool = False
    """Go on with a sweep that was killed."""
    root: str | None = None
    """Folder or tar file of the run's images, if they are no longer where they were in training."""
    test_root: str | None = None
    """The same of the test images."""
    space: str | None = None
    """The run's space, said again if it is code of your own: path/to/file.py:function."""
    dataset: str | None = None
    """The run's dataset, said again if it is code of your own in another file than its space, or not annotated to
    return a supernet.training.data.Data."""


def main() -> None:
    arguments = parse_flags(Arguments, __doc__)
    job = base(arguments)
    trials = plan(arguments, job)
    output = arguments.output or arguments.run / arguments.name
    storage = arguments.storage or str(arguments.run)
    run = partial(
        run_sweep,
        partial(search, arguments=arguments, base=job, directory=Path.cwd()),
        trials,
        storage,
        arguments.name,
        resume=arguments.resume,
        threads=arguments.threads,
        gpus=arguments.gpus_per_worker,
        address=arguments.address,
        workers=arguments.workers,
    )
    sweep = watched(run, f"{len(trials)} trainings", len(trials) * arguments.evaluations)
    evaluations = [evaluation for trial in sweep.trials for evaluation in trial.evaluations if evaluation.scores]
    if not evaluations:
        fail("all trainings failed", 1)
    score = next(iter(evaluations[0].scores))
    write_flags(output / "trainings.yaml", arguments)
    write_sweep(sweep, output, {COST: COST}, score, partial(run_of, Path(storage) / arguments.name / HISTORIES))
    console.print(f"{len(sweep.trials)} trainings; the tables are in {output}.")


def base(arguments: Arguments) -> Job:
    """The job of the run, as workers read it, whose working directory is another."""
    job = read_job(arguments.run, space=arguments.space, dataset=arguments.dataset)
    if job is None:
        raise ValueError(f"{arguments.run} is no directory of a training run")
    data = located(job.data, arguments.root, arguments.test_root)
    data = dataclasses.replace(data, dataset=absolute(data.dataset))
    return dataclasses.replace(job, space=absolute(job.space), data=data)


def plan(arguments: Arguments, job: Job) -> list[TrialSettings]:
    """The settings of every trial, after checking that each can run."""
    worker_device(arguments.device, arguments.gpus_per_worker)
    check_strategy(arguments.strategy)
    spaces = [absolute(space) for space in arguments.spaces]
    check_named_once("training", methods=arguments.methods, lrs=arguments.lrs, spaces=spaces, seeds=arguments.seeds)
    trials = trainings(job, arguments.methods, arguments.lrs, spaces, arguments.seeds)
    data = open_data(job.data, job.train.seed)
    for settings in trials:
        check_training(training_job(job, settings, "cpu"), data)
    return trials


def run_of(histories: Path, settings: TrialSettings) -> dict[str, str]:
    """The column of trials.csv with the run of a trial, where that is kept."""
    folder = folder_of(histories, settings) / RUN
    return {"run": str(folder) if folder.exists() else ""}


def search(
    settings: TrialSettings,
    history: Path,
    storage: str | None,
    on_generation: Callable[[Generation], None],
    arguments: Arguments,
    base: Job,
    directory: Path,
) -> None:
    """One trial, in the directory that the sweep was started in, if there is one here: images may be relative to it."""
    if directory.is_dir():
        os.chdir(directory)
    where = str(worker_device(arguments.device, arguments.gpus_per_worker))
    trained = run_job(training_job(base, settings, where), history.parent / RUN, resume=True)
    job = SearchJob(
        strategy=arguments.strategy,
        objectives=(COST,),
        evaluations=arguments.evaluations,
        population=arguments.population,
        images=arguments.images,
        calibration_images=arguments.calibration_images,
        seed=int(settings["seed"]),
    )
    run_search(job, trained, {}, history, storage=storage, resume=True, device=where, on_generation=on_generation)
