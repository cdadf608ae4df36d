"""Search a trained supernet many times: strategies x devices x latency limits x seeds, with Ray Tune; and compare them.

    supernet sweep --run runs/digits --predictors runs/latency/* --limits-ms 0.2 0.3 --seeds 0 1 2
    supernet sweep --run runs/digits --predictors runs/latency/* --strategies evolution random --asha
    supernet sweep --run runs/digits --predictors runs/latency/* --seeds 0 1 2 --teacher models/teacher \
        --strategies evolution dna rdm zero_cost ntk macs random --judge standalone --judge-epochs 20
    supernet sweep --run runs/digits --predictors runs/latency/* --resume
    supernet sweep --run runs/digits --predictors runs/latency/* --address auto --storage s3://bucket/sweeps

Every trial is a whole search. Without `--address`, Ray starts on this machine, with a trial on each `--threads` CPUs.
A trial whose worker dies is retried, and a sweep that was killed goes on with `--resume`. Writes OUTPUT/trials.csv, one
row a trial, OUTPUT/trials/ (every evaluation), OUTPUT/front_DEVICE.csv, the best of all trials on a device, and
OUTPUT/report.html to look at.

Every strategy searches by its own score and hands in its front: what it would choose, and up to `--hand-in`
architectures in all. When all searches have ended, one yardstick (`--judge`) judges what was handed in, each
architecture once, on Ray as well. OUTPUT/strategies.csv says how strategies stand on each device under each limit,
OUTPUT/handed_in.csv what each search handed in. OUTPUT/judged_JUDGE.jsonl, and a `--storage` that is an address, keep
what was judged, so that `--resume` goes on from there, or judges a finished sweep by another yardstick. A teacher sees
the images, blocks are trained (in OUTPUT/dna), and so are the networks that an ensemble learns from (in
OUTPUT/ensemble), once, before the searches begin.

The last line is for a cluster, typed on one of its machines. Every machine needs this package installed, the same files
at RUN and at the predictors' folders (a network file system, or copies), and a `--storage` that all can write to.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from rich.table import Table

from predictors import LatencyPredictor
from search.blockwise.dna import DnaConfig
from search.comparison import (
    MEASURED,
    HandedIn,
    Yardstick,
    by_supernet,
    by_table,
    entry_settings,
    handed_in,
    judged,
    on_workers,
    standings,
    trained_alone,
    with_values,
    write_comparison,
)
from search.evaluator import evaluate_here
from search.limits import reachable
from search.loop import Generation
from search.margin import beyond_measurements, limit_notes, probability_within
from search.report.sources import write_origin
from search.run import load_predictors, make_problem, prepared_judge, run_search
from search.scores.ensemble import EnsembleConfig
from search.scores.judges import LEARNT, Judge, make_judge
from search.scores.teacher_guided import GuidanceConfig
from search.scores.trained_alone import AkdConfig
from search.settings import BY_TEACHER, POPULATION, READ_BY, SearchJob
from search.sweep import Sweep, TrialSettings, combined_front, run_sweep, write_sweep
from search.untrained.te_nas import TeNasConfig
from supernet.artifacts.runs import Run, load_run
from supernet.artifacts.storage import beneath, is_address
from supernet.own_code import absolute
from supernet.space import Arch
from supernet.training.data import DataConfig
from supernet.training.execution import Execution, located, worker_device
from supernet_cli.command_line import DeviceFlag, GpusFlag, console, fail, progress_bar, report
from supernet_cli.flags import parse_flags, write_flags
from supernet_cli.search import measure_front
from supernet_cli.sweeping import check_named_once, watched

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    run: Path
    """Folder of the training run."""
    predictors: tuple[Path, ...]
    """Folders of latency predictors, one a device."""
    strategies: tuple[str, ...] = ("evolution",)
    """What to compare: a strategy of search.strategies.STRATEGIES, which goes by accuracy in the supernet, or the first
    metric of another task; a score (te_nas, zero_cost, rdm, dna, ensemble, akd, or one that zero_cost combines, such as
    ntk, synflow or macs), searched as `supernet search --score` does; or both, as evolution:dna."""
    limits_ms: tuple[float, ...] = ()
    """Latency limits, each of which is a search on every device; none gives searches without a limit."""
    seeds: tuple[int, ...] = (0,)
    """Seeds, each of which is a search."""
    evaluations: int = SearchJob.evaluations
    """Architectures to evaluate in a search."""
    population: int | None = SearchJob.population
    """Architectures in a generation, no more than are evaluated; by default 100."""
    images: int | None = SearchJob.images
    """Held-out images that judge an architecture, at most; None for all."""
    resize_images: bool = SearchJob.resize_images
    """Prepare images at the largest resolution alone and resize them for each subnet, as training does."""
    calibration_images: int | None = SearchJob.calibration_images
    """Training images for BatchNorm; by default as in training."""
    calibration_bytes: int = SearchJob.calibration_bytes
    """Bytes that the activations of images may take at once, in each trial; where those of all calibration images take
    more, BatchNorm is recalibrated in chunks of them, which changes values a little."""
    batch_size: int = SearchJob.batch_size
    """Images that a subnet runs on at a time."""
    zero_cost: tuple[str, ...] = SearchJob.zero_cost
    """Scores of search.scores.untrained.NAMES whose mean rank is the score zero_cost, or vote."""
    zero_cost_images: int = SearchJob.zero_cost_images
    """Images that the scores without training see at a time; te_nas draws from eight times as many."""
    te_nas: TeNasConfig = SearchJob.te_nas
    teacher: str | None = SearchJob.teacher
    """Whom rdm, dna and akd follow: a pretrained model of timm's, or torchvision's as torchvision/NAME, or the folder
    of an extracted subnet or a training run."""
    rdm: GuidanceConfig = field(default_factory=GuidanceConfig)
    dna: DnaConfig = field(default_factory=DnaConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    akd: AkdConfig = field(default_factory=AkdConfig)
    judge: Literal["supernet", "standalone", "table"] = "supernet"
    """What judges all that was handed in: the supernet's accuracy (or first metric) on the held-out images, the same of
    architectures that are trained alone, or a table of what was published."""
    judge_epochs: int | None = None
    """Epochs that standalone trains each architecture, otherwise as the run was trained."""
    table: Path | None = None
    """CSV file for the judge table, with the columns arch (JSON, or the name in NAS-Bench-201 or -Macro) and
    accuracy."""
    hand_in: int = 5
    """Architectures of its front, at most, that a search hands in: the best by its own score, the choice among them."""
    measure: bool = True
    """Measure the latency of what was handed in where a predictor's device is this machine."""
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

    def job(self, settings: TrialSettings) -> SearchJob:
        """The search of one trial."""
        device, limit_ms = str(settings["device"]), float(settings["limit_ms"])
        return SearchJob(
            **self.of_all_trials() | entry_settings(str(settings["strategy"])),
            limits={device: limit_ms} if limit_ms != float("inf") else {},
            objectives=(device,),
            seed=int(settings["seed"]),
        )

    def of_all_trials(self) -> dict[str, object]:
        """What the searches of all trials have in common."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(SearchJob) if f.name in vars(self)}


def main() -> None:
    arguments = parse_flags(Arguments, __doc__)
    trained = opened(arguments)
    trials = plan(arguments, trained)
    output = arguments.output or arguments.run / arguments.name
    yardstick = make_yardstick(arguments, trained, output)
    run = partial(
        run_sweep,
        partial(search, arguments=elsewhere(arguments), directory=Path.cwd()),
        trials,
        arguments.storage or str(arguments.run),
        arguments.name,
        resume=arguments.resume,
        threads=arguments.threads,
        gpus=arguments.gpus_per_worker,
        address=arguments.address,
        workers=arguments.workers,
        grace_evaluations=2 * (arguments.population or POPULATION) if arguments.asha else None,
        prepare=partial(prepare, arguments, trained, output),
    )
    sweep = watched(run, f"{len(trials)} searches", len(trials) * arguments.evaluations)
    if all(trial.error for trial in sweep.trials):
        fail("all searches failed", 1)
    predictors = load_predictors(arguments.predictors, trained.family)
    found = [handed_in(trial, str(trial.settings["device"]), arguments.hand_in) for trial in sweep.trials]
    values = judge(arguments, yardstick, sweep, found, trained, predictors, output)
    sweep = with_values(sweep, found, yardstick, values)
    measured = measure_members(found, trained, predictors, output / MEASURED) if arguments.measure else {}
    latency_ms = {name: dict(zip(values, p.cost(list(values)))) for name, p in predictors.items()} if values else {}
    rows = standings(found, values, latency_ms, measured)
    write_flags(output / "sweep.yaml", arguments)
    write_sweep(sweep, output, {device: device for device in predictors}, yardstick.name)
    write_comparison(output, rows, yardstick.name, found, values, measured)
    write_origin(output, arguments.run, arguments.predictors)
    for table in standings_tables(rows, yardstick.name):
        console.print(table)
    for line in notes_on_limits(sweep, yardstick.name, predictors):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{len(sweep.trials)} searches; the tables are in {output}.")
    report(output)


def plan(arguments: Arguments, trained: Run) -> list[TrialSettings]:
    """The settings of every trial, after checking that each can run: strategies, scores, devices, and limits within
    reach."""
    worker_device(arguments.device, arguments.gpus_per_worker)
    if arguments.hand_in < 1:
        raise ValueError(f"hand_in is at least 1, not {arguments.hand_in}")
    if (arguments.judge == "standalone") != (arguments.judge_epochs is not None):
        raise ValueError("--judge standalone and --judge-epochs, how long it trains, go together")
    if (arguments.judge == "table") != (arguments.table is not None):
        raise ValueError("--judge table and --table, the file, go together")
    devices = load_predictors(arguments.predictors, trained.family)
    if not devices:
        raise ValueError("a sweep needs at least one latency predictor")
    limits = arguments.limits_ms or (float("inf"),)
    for device, limit in itertools.product(devices, limits):
        reachable(make_problem(SearchJob(limits={device: limit}), trained.family, devices), np.random.default_rng(0))
    check_named_once("search", strategies=arguments.strategies, limits_ms=limits, seeds=arguments.seeds)
    names = ("strategy", "device", "limit_ms", "seed")
    trials = [
        dict(zip(names, values)) for values in itertools.product(arguments.strategies, devices, limits, arguments.seeds)
    ]
    jobs = {str(trial["strategy"]): arguments.job(trial) for trial in trials}
    searches: dict[str, str] = {}
    for name, job in jobs.items():
        same = searches.setdefault(str(dataclasses.replace(job, strategy=job.searches_by)), name)
        if same != name:
            raise ValueError(f"{same} and {name} are one and the same strategy: name it once")
        if job.score not in BY_TEACHER:
            make_judge(job, trained, arguments.output or arguments.run)
        elif job.teacher is None:
            raise ValueError(f"the score {job.score} needs a teacher: name a model of timm's, or a folder: --teacher")
        elif job.score == "rdm" and job.rdm.epochs:
            raise ValueError("in a sweep, candidates of rdm come from the supernet: leave out --rdm.epochs")
    for name, scores in READ_BY.items():
        if getattr(arguments, name) != getattr(SearchJob(), name) and not any(j.score in scores for j in jobs.values()):
            flag = name.replace("_", "-")
            logger.warning("--%s has no effect: no strategy here has the score %s", flag, " or ".join(scores))
    if arguments.asha and len({(job.score, job.zero_cost) for job in jobs.values()}) > 1:
        raise ValueError(
            f"--asha compares hypervolumes, and those of {', '.join(jobs)} are of different scores: leave it out"
        )
    return trials


def make_yardstick(arguments: Arguments, trained: Run, output: Path) -> Yardstick:
    """What `--judge` names."""
    if arguments.table:
        return by_table(arguments.table, trained)
    if arguments.judge_epochs is not None:
        execution = Execution(workers=0, eval_epochs=0, keep_checkpoints=1)
        return trained_alone(trained, arguments.judge_epochs, (output / "standalone").absolute(), execution)
    return by_supernet(SearchJob(**arguments.of_all_trials()), trained)


def prepare(arguments: Arguments, trained: Run, output: Path) -> dict[str, object]:
    """What trials share: for each score that learns first, the judge, which has learnt what it is to learn."""
    jobs = {}
    for entry in arguments.strategies:
        job = arguments.job({"strategy": entry, "device": "", "limit_ms": float("inf"), "seed": arguments.seeds[0]})
        if job.score in LEARNT:
            jobs[job.score] = job
    return {"judges": {score: prepared_judge(job, trained, output, arguments.device) for score, job in jobs.items()}}


def judge(
    arguments: Arguments,
    yardstick: Yardstick,
    sweep: Sweep,
    found: Sequence[HandedIn],
    trained: Run,
    predictors: Mapping[str, LatencyPredictor],
    output: Path,
) -> dict[Arch, float]:
    """The values of all that was handed in, and of whatever else is known by the yardstick: what searches that went by
    it have evaluated, or a whole table."""
    yardstick, space = yardstick.knowing(sweep.trials), trained.family.space
    archs = list(dict.fromkeys(evaluation.arch for entry in found for evaluation in entry.front))
    missing = [arch for arch in archs if arch not in yardstick.known]
    evaluate = evaluate_here({yardstick.name: yardstick.score})
    if not arguments.table:
        threads, gpus = arguments.threads, arguments.gpus_per_worker
        evaluate = on_workers(yardstick, space, arguments.workers, threads, gpus, arguments.address)
    storage = None
    if arguments.storage and is_address(arguments.storage):
        storage = beneath(arguments.storage, arguments.name, f"judged_{arguments.judge}")
    with progress_bar() as progress:
        task = progress.add_task("Judging", total=len(missing), note="")
        values, failed = judged(
            archs,
            yardstick,
            space,
            {device: predictor.cost for device, predictor in predictors.items()},
            evaluate,
            output / f"judged_{arguments.judge}.jsonl",
            storage,
            on_evaluation=lambda evaluation, count: progress.update(task, completed=count),
        )
    for evaluation in failed:
        line = f"not judged: {evaluation.arch.to_json()}: {evaluation.error}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return values


def measure_members(
    found: Sequence[HandedIn], trained: Run, predictors: Mapping[str, LatencyPredictor], folder: Path
) -> dict[str, dict[Arch, float]]:
    """Milliseconds of what was handed in for each device that is this machine."""
    measured: dict[str, dict[Arch, float]] = {}
    for name, predictor in predictors.items():
        members = {e.arch: e for entry in found if entry.trial.settings["device"] == name for e in entry.front}
        if members:
            measured |= measure_front(list(members.values()), trained, {name: predictor}, folder)
    return measured


def standings_tables(rows: Sequence[Mapping[str, object]], yardstick: str) -> Iterator[Table]:
    """A table for each device and limit."""
    columns = {
        "strategy": "strategy",
        "seeds": "seeds",
        "value": yardstick,
        "standard_error": "standard error",
        "regret": "regret",
        "evaluations": "evaluations",
        "seconds": "seconds",
        "told_apart": "told apart",
    }
    for (device, limit_ms), group in itertools.groupby(rows, lambda row: (row["device"], row["limit_ms"])):
        within = "" if limit_ms == float("inf") else f" within {limit_ms:g} ms"
        table = Table(*columns.values(), title=f"{device}{within}")
        for row in group:
            table.add_row(*(_cell(row[name]) for name in columns))
        yield table


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def notes_on_limits(sweep: Sweep, score: str, predictors: Mapping[str, LatencyPredictor]) -> Iterator[str]:
    """How surely the best of all trials with one limit on one device keep within it."""
    for device, predictor in predictors.items():
        limited = [trial for trial in sweep.trials if trial.settings["device"] == device and not trial.error]
        for limit_ms in sorted({float(trial.settings["limit_ms"]) for trial in limited} - {float("inf")}):
            if warning := beyond_measurements(device, predictor, limit_ms):
                yield f"warning: {warning}"
            trials = [trial for trial in limited if trial.settings["limit_ms"] == limit_ms]
            archs = [Arch.from_json(str(row["arch"])) for row in combined_front(trials, device, device, score)]
            yield from limit_notes(device, limit_ms, probability_within(predictor, archs, limit_ms))


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
    storage: str | None,
    on_generation: Callable[[Generation], None],
    arguments: Arguments,
    directory: Path,
    judges: Mapping[str, Judge] = MappingProxyType({}),
) -> None:
    """One trial, in the directory that the sweep was started in, if there is one here: images may be relative to it.
    `judges` are those that trials share, by score."""
    if directory.is_dir():
        os.chdir(directory)
    trained, job = opened(arguments), arguments.job(settings)
    device = str(settings["device"])
    predictors = {device: load_predictors(arguments.predictors, trained.family)[device]}
    where = str(worker_device(arguments.device, arguments.gpus_per_worker))
    run_search(
        job,
        trained,
        predictors,
        history,
        storage=storage,
        judge=judges.get(job.score),
        resume=True,
        device=where,
        on_generation=on_generation,
    )
