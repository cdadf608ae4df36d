"""Search a trained supernet many times: strategies x devices x latency limits x seeds, with Ray Tune.

    supernet sweep --run runs/digits --predictors runs/latency/* --limits-ms 0.2 0.3 --seeds 0 1 2
    supernet sweep --run runs/digits --predictors runs/latency/* --strategies evolution random --asha
    supernet sweep --run runs/digits --predictors runs/latency/* --resume
    supernet sweep --run runs/digits --predictors runs/latency/* --address auto --storage s3://bucket/sweeps

Every trial is a whole search. Without `--address`, Ray starts on this machine, with a trial on each `--threads` CPUs.
A trial whose worker dies is retried, and a sweep that was killed goes on with `--resume`. Writes OUTPUT/trials.csv, one
row a trial, OUTPUT/trials/ (every evaluation), OUTPUT/front_DEVICE.csv, the best of all trials on a device, and
OUTPUT/report.html to look at.

The last line is for a cluster, typed on one of its machines. Every machine needs this package installed, the same files
at RUN and at the predictors' folders (a network file system, or copies), and a `--storage` that all can write to.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro

from predictors import LatencyPredictor
from search.limits import reachable
from search.loop import Generation
from search.margin import beyond_measurements, limit_notes, probability_within
from search.parallel import worker_device
from search.report.sources import write_origin
from search.run import load_predictors, make_problem, run_search
from search.settings import SearchJob
from search.strategies import check_strategy
from search.sweep import Sweep, TrialSettings, combined_front, run_sweep, write_sweep
from supernet.artifacts.runs import Run, load_run, read_family
from supernet.own_code import absolute
from supernet.space import Arch
from supernet.training.data import DataConfig
from supernet.training.execution import Execution, located
from supernet_cli.command_line import DeviceFlag, GpusFlag, console, fail, progress_bar, report


@dataclass(frozen=True)
class Arguments:
    run: Path
    """Folder of the training run."""
    predictors: tuple[Path, ...]
    """Folders of latency predictors, one a device."""
    strategies: tuple[str, ...] = ("evolution",)
    """Some of search.strategies.STRATEGIES, all of which go by accuracy in the supernet, or the first metric of another
    task."""
    limits_ms: tuple[float, ...] = ()
    """Latency limits, each of which is a search on every device; none gives searches without a limit."""
    seeds: tuple[int, ...] = (0,)
    """Seeds, each of which is a search."""
    evaluations: int = SearchJob.evaluations
    """Architectures to evaluate in a search."""
    population: int = SearchJob.population
    """Architectures in a generation."""
    images: int | None = SearchJob.images
    """Held-out images that judge an architecture; by default all."""
    calibration_images: int | None = SearchJob.calibration_images
    """Training images for BatchNorm; by default as in training."""
    calibration_bytes: int = SearchJob.calibration_bytes
    """Bytes that the activations of images may take at once, in each trial; where those of all calibration images take
    more, BatchNorm is recalibrated in chunks of them, which changes values a little."""
    name: str = "sweep"
    """Name of the sweep, a folder in the storage."""
    storage: str | None = None
    """Folder or address (s3://, ...) for the trials; by default that of the run."""
    output: Path | None = None
    """Folder for the tables; by default RUN/NAME."""
    asha: bool = False
    """Stop searches of low hypervolume early, after two generations first."""
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
    arguments = tyro.cli(Arguments, description=__doc__)
    trials = plan(arguments)
    output = arguments.output or arguments.run / arguments.name
    with progress_bar() as progress:
        task = progress.add_task(f"{len(trials)} searches", total=len(trials) * arguments.evaluations, note="")
        evaluated: dict[str, float] = {}

        def on_generation(settings: TrialSettings, metrics: Mapping[str, float]) -> None:
            evaluated[str(settings)] = metrics["evaluated"]
            progress.update(task, completed=sum(evaluated.values()))

        sweep = run_sweep(
            partial(search, arguments=elsewhere(arguments), directory=Path.cwd()),
            trials,
            arguments.storage or str(arguments.run),
            arguments.name,
            resume=arguments.resume,
            threads=arguments.threads,
            gpus=arguments.gpus_per_worker,
            address=arguments.address,
            workers=arguments.workers,
            grace_evaluations=2 * arguments.population if arguments.asha else None,
            on_generation=on_generation,
        )
    for line in sweep.retried:
        console.print(line, highlight=False, markup=False)
    for trial in sweep.trials:
        if trial.error:
            console.print(f"failed: {trial.settings}: {trial.error}", highlight=False, markup=False)
    if all(trial.error for trial in sweep.trials):
        fail("all searches failed", 1)
    devices = list(dict.fromkeys(str(settings["device"]) for settings in trials))
    write_sweep(sweep, output, {device: device for device in devices})
    write_origin(output, arguments.run, arguments.predictors)
    family = read_family(arguments.run, space=arguments.space)
    for line in notes_on_limits(sweep, devices, load_predictors(arguments.predictors, family)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{len(sweep.trials)} searches; the tables are in {output}.")
    report(output)


def plan(arguments: Arguments) -> list[TrialSettings]:
    """The settings of every trial, after checking that each can run: strategies, devices, and limits within reach."""
    worker_device(arguments.device, arguments.gpus_per_worker)
    for strategy in arguments.strategies:
        check_strategy(strategy)
    family = opened(arguments).family
    devices = load_predictors(arguments.predictors, family)
    if not devices:
        raise ValueError("a sweep needs at least one latency predictor")
    limits = arguments.limits_ms or (float("inf"),)
    for device, limit in itertools.product(devices, limits):
        reachable(make_problem(SearchJob(limits={device: limit}), family, devices), np.random.default_rng(0))
    names = ("strategy", "device", "limit_ms", "seed")
    return [
        dict(zip(names, values)) for values in itertools.product(arguments.strategies, devices, limits, arguments.seeds)
    ]


def notes_on_limits(sweep: Sweep, devices: Sequence[str], predictors: Mapping[str, LatencyPredictor]) -> Iterator[str]:
    """How surely the best of all trials with one limit on one device keep within it."""
    for device in devices:
        limited = [trial for trial in sweep.trials if trial.settings["device"] == device and not trial.error]
        for limit_ms in sorted({float(trial.settings["limit_ms"]) for trial in limited} - {float("inf")}):
            if warning := beyond_measurements(device, predictors[device], limit_ms):
                yield f"warning: {warning}"
            trials = [trial for trial in limited if trial.settings["limit_ms"] == limit_ms]
            archs = [Arch.from_json(str(row["arch"])) for row in combined_front(trials, device, device)]
            yield from limit_notes(device, limit_ms, probability_within(predictors[device], archs, limit_ms))


def elsewhere(arguments: Arguments) -> Arguments:
    """The arguments for workers, whose working directory is another."""
    predictors = tuple(path.absolute() for path in arguments.predictors)
    here = located(DataConfig(), arguments.root, arguments.test_root)
    return dataclasses.replace(
        arguments,
        run=arguments.run.absolute(),
        predictors=predictors,
        root=here.root,
        test_root=here.test_root,
        space=arguments.space and absolute(arguments.space),
        dataset=arguments.dataset and absolute(arguments.dataset),
    )


def opened(arguments: Arguments) -> Run:
    return load_run(
        arguments.run, arguments.root, arguments.test_root, space=arguments.space, dataset=arguments.dataset
    )


def search(
    settings: TrialSettings,
    history: Path,
    on_generation: Callable[[Generation], None],
    arguments: Arguments,
    directory: Path,
) -> None:
    """One trial, in the directory that the sweep was started in, if there is one here: images may be relative to it."""
    if directory.is_dir():
        os.chdir(directory)
    trained = opened(arguments)
    device = settings["device"]
    predictors = {device: load_predictors(arguments.predictors, trained.family)[device]}
    job = SearchJob(
        strategy=settings["strategy"],
        limits={device: settings["limit_ms"]} if settings["limit_ms"] != float("inf") else {},
        objectives=(device,),
        evaluations=arguments.evaluations,
        population=arguments.population,
        images=arguments.images,
        calibration_images=arguments.calibration_images,
        calibration_bytes=arguments.calibration_bytes,
        seed=settings["seed"],
    )
    where = str(worker_device(arguments.device, arguments.gpus_per_worker))
    run_search(job, trained, predictors, history, resume=True, device=where, on_generation=on_generation)
