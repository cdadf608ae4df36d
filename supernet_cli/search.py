"""Search a trained supernet for the best architectures within limits.

    supernet search --run runs/digits
    supernet search --run runs/digits --predictors runs/latency/* --limits xeon-onnxruntime-fp32-1t-b1=0.3
    supernet search --run runs/digits --limits macs=1.5e6 parameters=2e5 --strategy once_for_all
    supernet search --run runs/digits --workers 2
    supernet search --run runs/digits --score rdm --teacher models/teacher --evaluations 24 \
        --output runs/rdm
    supernet search --run runs/digits --score dna --teacher models/teacher --limits macs=2e6 \
        --images 100 --calibration-images 100 --dna.epochs 5 --output runs/dna
    supernet search --run runs/digits --score ensemble --ensemble.trained 12 --ensemble.epochs 5 \
        --output runs/ensemble
    supernet search --run runs/digits --score akd --teacher models/teacher --akd.epochs 3 --evaluations 24 \
        --output runs/akd
    supernet search --space nasbench201 --score te_nas --output runs/te_nas

Accuracy, or the first metric of another task, is that on the held-out images with BatchNorm recalibrated; the test
images are not touched. Without a latency predictor it is traded off against MACs. With `--workers` on Ray workers, with
the same result. A search that was killed goes on with `--resume`, on any machine if it has a `--storage` that is not on
the one that was lost. Writes OUTPUT/report.html to look at, OUTPUT/search.jsonl (every evaluation),
OUTPUT/generations.csv and OUTPUT/front.csv; the front's latency is measured for devices that are this machine. About 10
subnets of digits a second on 2 cores. Where a latency is limited, the column "DEVICE, within limit" of front.csv
says how probable it is that each architecture keeps within the limit, and what was measured to be slower is named.

A teacher has the classes, by name, and the input size of the run: `supernet train-standalone --run runs/digits --model
resnet18 --input-size 32 --output models/teacher trains one. `rdm` then scores two subnets of digits a second on one
core. `dna` trains blocks first, in OUTPUT/dna, from where it was stopped; then it rates every path of each block, which
takes tens of milliseconds each, and proposes the best architectures within the limits in order. The line above trains
four blocks and rates 6,278 paths in three minutes on one core. Where blocks end follows from the resolutions of both
networks, unless --dna.points and --dna.cuts say it. `ensemble` trains some networks alone first, in OUTPUT/ensemble,
from where it was stopped, and learns from these what the supernet's accuracy and other scores are worth. `akd` trains
each architecture by the teacher, in OUTPUT/akd. `te_nas` prunes where operations can be mixed and nothing is limited.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table

from predictors import LatencyPredictor, is_this_machine, measure, prepare
from predictors.measuring import runtimes
from predictors.quantities import LATENCY
from search.blockwise.dna import DnaConfig
from search.certainty import decimals
from search.front import HIGH, LOW, FrontCertainty, front_certainty
from search.history import Evaluation
from search.loop import Generation
from search.margin import beyond_measurements, device_limits, limit_notes, probability_within
from search.report.sources import write_origin
from search.run import load_predictors, run_search
from search.scores.ensemble import EnsembleConfig
from search.scores.judges import TRAINING_FREE, untrained_run
from search.scores.teacher_guided import GuidanceConfig
from search.scores.trained_alone import AkdConfig
from search.settings import READ_BY, SCORES, SearchJob
from search.table import write_csv
from search.untrained.te_nas import TeNasConfig
from supernet.artifacts.runs import Run, load_run
from supernet.conditions import ABSENT, GIVEN, only_where
from supernet.space import Arch
from supernet.training.data import DataConfig
from supernet.training.execution import Execution
from supernet_cli.command_line import DeviceFlag, GpusFlag, console, one_of, progress_bar, report
from supernet_cli.flags import parse_flags, write_flags


@dataclass(frozen=True)
class Arguments:
    run: Path | None = None
    """Folder of the training run."""
    space: str | None = None
    """Instead of a run, a space of supernet.families.FAMILIES, for te_nas and zero_cost, or code of your own,
    package.module:function or path/to/file.py:function; beside a run, its space said again, if it is such code."""
    space_options: Annotated[str, only_where(run=ABSENT)] = "{}"
    """Options of that space as a JSON object."""
    dataset: str | None = None
    """The run's dataset, said again if it is code of your own in another file than its space, or not annotated to
    return a supernet.training.data.Data; without a run, the same as --data.dataset."""
    data: Annotated[DataConfig, only_where(run=ABSENT)] = field(default_factory=DataConfig)
    """Images for a search without a run."""
    data_workers: Annotated[int | None, tyro.conf.arg(name="data.workers"), only_where(run=ABSENT)] = Execution.workers
    """Processes that load these; 0 loads in this one, None is as many as seem right."""
    root: str | None = None
    """Folder or tar file of the images, if a run's are no longer where they were in training (or --data.root)."""
    test_root: str | None = None
    """The same of the test images."""
    output: Path | None = None
    """Folder for the results; by default that of the training run."""
    strategy: str | None = SearchJob.strategy
    """evolution, screened, bayesian, once_for_all, spos, reinforce, reinforce_controller, random, local or
    global_threshold (pruning by the importance of channels, in a run whose widths are those of single layers); by
    default the search that comes with the score, or else evolution."""
    score: str = SearchJob.score
    """What architectures are judged by: accuracy (of another task than images with classes, its first metric), te_nas,
    zero_cost, rdm, dna, ensemble or akd, which are for such images. te_nas comes with a search by pruning,
    dna with one that puts the best paths of blocks together."""
    predictors: tuple[Path, ...] = ()
    """Folders of latency predictors, one a device."""
    limits: tuple[str, ...] = ()
    """NAME=VALUE, the largest admissible value; names are macs, parameters, activation_bytes and stored_bytes (as in
    PyTorch, in single precision), activation_bytes.int8 and stored_bytes.int8 (as deployed, and so with fp32, fp16 and
    int4), bit_operations and weight_bytes where layers choose their bits, devices (ms), and where these were measured
    DEVICE:energy_mj and DEVICE:peak_memory_bytes."""
    objectives: tuple[str, ...] = SearchJob.objectives
    """Costs to trade off against the score; by default the latency on every device, or macs if there is none."""
    evaluations: int = SearchJob.evaluations
    """Architectures to evaluate."""
    population: int | None = SearchJob.population
    """Architectures in a generation, no more than are evaluated; by default 100."""
    images: int | None = SearchJob.images
    """Held-out images that judge an architecture, at most; None for all."""
    resize_images: bool = SearchJob.resize_images
    """Prepare images at the largest resolution alone and resize them for each subnet, as training does; otherwise at
    every resolution by themselves, as for use, which takes so many times the memory and the loading."""
    calibration_images: int | None = SearchJob.calibration_images
    """Training images for BatchNorm; by default as in training."""
    calibration_bytes: int = SearchJob.calibration_bytes
    """Bytes that the activations of images may take at once, in each worker; where those of all calibration images take
    more, BatchNorm is recalibrated in chunks of them, which changes values a little."""
    batch_size: int = SearchJob.batch_size
    """Images that a subnet runs on at a time."""
    amp: Literal["bf16"] | None = SearchJob.amp
    """bf16 judges by networks that compute in bfloat16: faster where the device has instructions for it, refused where
    it has not, and a little other values."""
    race: float | Literal["auto"] | None = SearchJob.race
    """Confidence, such as 0.9, with which each architecture of the front survives races: all are judged by 250 of the
    images, then by 500, and so on, but those that are surely not on the front are left out. What is left out has no
    score in the results. None judges all by all images; auto races at 0.9 where 1,000 images or more judge."""
    zero_cost: Annotated[tuple[str, ...], only_where(score=READ_BY["zero_cost"])] = SearchJob.zero_cost
    """Scores of search.scores.untrained.NAMES whose mean rank is the score zero_cost, or vote."""
    zero_cost_images: int = SearchJob.zero_cost_images
    """Images that the scores without training see at a time; te_nas draws from eight times as many."""
    te_nas: Annotated[TeNasConfig, only_where(score=READ_BY["te_nas"])] = SearchJob.te_nas
    teacher: Annotated[str | None, only_where(score=READ_BY["teacher"])] = SearchJob.teacher
    """Whom rdm, dna and akd follow: a pretrained model of timm's, or torchvision's as torchvision/NAME, or the folder
    of an extracted subnet or a training run."""
    rdm: Annotated[GuidanceConfig, only_where(score=READ_BY["rdm"])] = field(default_factory=GuidanceConfig)
    dna: Annotated[DnaConfig, only_where(score=READ_BY["dna"])] = field(default_factory=DnaConfig)
    ensemble: Annotated[EnsembleConfig, only_where(score=READ_BY["ensemble"])] = field(default_factory=EnsembleConfig)
    akd: Annotated[AkdConfig, only_where(score=READ_BY["akd"])] = field(default_factory=AkdConfig)
    seed: int = SearchJob.seed
    """All that is random follows from it."""
    device: DeviceFlag = Execution.device
    workers: int = 0
    """Ray workers; 0 evaluates in this process, without Ray."""
    threads: Annotated[int, only_where(workers=GIVEN)] = 1
    """CPU threads of each Ray worker."""
    gpus_per_worker: Annotated[GpusFlag, only_where(workers=GIVEN)] = 0.0
    address: Annotated[str | None, only_where(workers=GIVEN)] = None
    """Ray cluster to join, such as auto; by default one is started on this machine."""
    storage: str | None = None
    """Folder or address (s3://, ...) where every evaluation is kept as well as in OUTPUT."""
    resume: bool = False
    """Go on with the search in OUTPUT, or that in the storage, with the same settings."""
    confirm: bool = False
    """Judge the front anew by held-out images that the search did not see, as many again as --images or those that are
    left: the best of many looks better than it is on those it was picked by. With --resume, a search that has ended."""
    measure: bool = True
    """Measure the front's latency where a predictor's device is this machine."""

    def __post_init__(self) -> None:
        if self.strategy in SCORES and self.score == SearchJob.score:
            say(f"{self.strategy} is a score: --strategy {self.strategy} is read as --score {self.strategy}")
            object.__setattr__(self, "score", self.strategy)
            object.__setattr__(self, "strategy", None)

    def job(self) -> SearchJob:
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(SearchJob) if f.name != "limits"}
        return SearchJob(limits=dict(parse_limit(text) for text in self.limits), **shared)


def main() -> None:
    search(parse_flags(Arguments, __doc__))


def search(arguments: Arguments) -> None:
    """What the command does."""
    job = arguments.job()
    logging.getLogger("search").setLevel(logging.INFO)  # how far blocks are trained and rated
    folder = arguments.output or arguments.run or Path()
    begun = arguments.storage or any((folder / name).exists() for name in ("search.jsonl", "dna"))
    if arguments.resume and not begun:
        raise ValueError(f"there is no search to resume in {folder}: start without --resume, or name another folder")
    trained = find_run(arguments, job)
    predictors = load_predictors(arguments.predictors, trained.family, {*job.limits, *job.objectives})
    output = arguments.output or arguments.run
    limits = device_limits(job.limits, predictors)
    for name, limit_ms in limits.items():
        if warning := beyond_measurements(name, predictors[name], limit_ms):
            say(f"warning: {warning}")
    generations: list[Generation] = []

    with progress_bar() as progress:
        task = progress.add_task("Searching", total=job.evaluations, note="")

        def on_generation(generation: Generation) -> None:
            generations.append(generation)
            note = f"generation {generation.index + 1}: "
            note += ", ".join(f"{name} {value:.4f}" for name, value in generation.best.items())
            note += "".join(f", {name} {value:.2f}" for name, value in generation.notes.items())
            progress.update(task, completed=generation.evaluated, note=note)

        outcome = run_search(
            job,
            trained,
            predictors,
            output / "search.jsonl",
            storage=arguments.storage,
            resume=arguments.resume,
            device=arguments.device,
            workers=arguments.workers,
            threads=arguments.threads,
            gpus_per_worker=arguments.gpus_per_worker,
            address=arguments.address,
            judge_front=True,
            confirm=arguments.confirm,
            on_evaluation=lambda evaluation, count: progress.update(task, completed=count),
            on_generation=on_generation,
        )
    for line in outcome.retried:
        say(line)
    for evaluation in outcome.result.evaluations:
        if evaluation.error:
            say(f"failed: {evaluation.arch.to_json()}: {evaluation.error}")
    if left_out := sum(evaluation.rejected is not None for evaluation in outcome.result.evaluations):
        say(f"{left_out} of {len(outcome.result.evaluations)} architectures were left out before they saw all images")
    front = sorted(outcome.result.front, key=lambda evaluation: next(iter(evaluation.scores.values())))
    score = outcome.result.problem.scores[0]
    considered = sum(not evaluation.error for evaluation in outcome.result.evaluations)
    sure = front_certainty(score, front, considered, outcome.judged, outcome.confirmed)
    measured = measure_front(front, trained, predictors, output) if arguments.measure else {}
    columns = front_rows(front, predictors, limits, measured, sure)
    write_csv(output / "front.csv", [{**row, "arch": e.arch.to_json()} for row, e in zip(columns, front)])
    write_csv(output / "generations.csv", [generation_row(generation) for generation in generations])
    write_flags(output / "search.yaml", arguments)
    if arguments.run:
        write_origin(output, arguments.run, arguments.predictors, notes=sure.notes() if sure else [])
    console.print(front_table(columns))
    for note in sure.notes() if sure else ():
        say(note)
    for name, limit_ms in limits.items():
        probabilities = [row[f"{name}, within limit"] for row in columns]
        measured_ms = [row.get(f"{name}, measured", nan) for row in columns]
        for note in limit_notes(name, limit_ms, probabilities, measured_ms, predictors[name].quantity):
            say(note)
    console.print(f"The front is in {output / 'front.csv'}, every evaluation in {output / 'search.jsonl'}.")
    report(output)


def find_run(arguments: Arguments, job: SearchJob) -> Run:
    """The run that was asked for, or an untrained one of the space."""
    if not one_of(arguments.run, arguments.space):
        raise ValueError("say which run to search with --run, or which space with --space")
    data = arguments.data
    root, test_root = arguments.root or data.root, arguments.test_root or data.test_root
    if arguments.run is not None:
        return load_run(arguments.run, root, test_root, space=arguments.space, dataset=arguments.dataset)
    if job.score not in TRAINING_FREE:
        raise ValueError(
            f"the score {job.score} needs a trained supernet: give --run, or search the space "
            f"by {' or '.join(TRAINING_FREE)}"
        )
    if arguments.output is None:
        raise ValueError("say where the results go with --output")
    data = dataclasses.replace(data, dataset=arguments.dataset or data.dataset, root=root, test_root=test_root)
    return untrained_run(arguments.space, arguments.space_options, data, arguments.data_workers)


def parse_limit(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        return name, float(value)
    except ValueError:
        raise ValueError(f"a limit is NAME=VALUE, such as macs=3e8, not {text!r}") from None


def measure_front(
    front: Sequence[Evaluation], trained: Run, predictors: Mapping[str, LatencyPredictor], output: Path
) -> dict[str, dict[Arch, float]]:
    """Milliseconds of the architectures on each of the devices that is this machine."""
    measured: dict[str, dict[Arch, float]] = {}
    for name, predictor in predictors.items():
        device = predictor.device
        if (
            predictor.quantity != LATENCY
            or device is None
            or device.runtime not in runtimes.RUNTIMES
            or not is_this_machine(device)
        ):
            continue

        def prepared(arch: Arch, device=device):
            return prepare(trained.family.build(arch), device, trained.family.example(arch))

        with progress_bar() as progress:
            task = progress.add_task(f"Measuring on {name}", total=len(front), note="")
            rows = measure(
                [evaluation.arch for evaluation in front],
                prepared,
                output / f"front_{name}.csv",
                progress=lambda done, total, task=task: progress.update(task, completed=done, total=total),
            )
        measured[name] = {row.arch: row.latency_ms for row in rows}
    return measured


def front_rows(
    front: Sequence[Evaluation],
    predictors: Mapping[str, LatencyPredictor],
    limits: Mapping[str, float],
    measured: Mapping[str, Mapping[Arch, float]],
    sure: FrontCertainty | None = None,
) -> list[dict[str, object]]:
    """A row an architecture: scores and how sure they are, costs, and for each device the standard error of its
    predicted milliseconds, the probability that they keep within the limit, if there is one, and what was measured, if
    anything was."""
    archs = [evaluation.arch for evaluation in front]
    how_sure = sure.columns() if sure else [{}] * len(front)
    rows = [{**evaluation.scores, **own, **evaluation.costs} for evaluation, own in zip(front, how_sure)]
    for name, predictor in predictors.items():
        columns = {f"{name}, standard error": predictor.predict(archs).standard_error_ms} if archs else {}
        if name in limits:
            columns[f"{name}, within limit"] = probability_within(predictor, archs, limits[name])
        if name in measured:
            columns[f"{name}, measured"] = [measured[name][arch] for arch in archs]
        for column, values in columns.items():
            for row, value in zip(rows, values):
                row[column] = float(value)
    return rows


def front_table(rows: Sequence[Mapping[str, object]]) -> Table:
    """The front; a value and its interval are in one column."""
    names = list(rows[0]) if rows else []
    ends = {name: (f"{name}, {LOW}", f"{name}, {HIGH}") for name in names if f"{name}, {LOW}" in names}
    columns = [name for name in names if not any(name in pair for pair in ends.values())]
    table = Table(*columns, title="Pareto front" + (", intervals of 95 %" if ends else ""))
    for row in rows:
        table.add_row(*(cell(row[name], *(row[end] for end in ends.get(name, ()))) for name in columns))
    return table


def cell(value: object, *interval: float) -> str:
    if interval:
        digits = decimals(interval)
        return "{} ({} to {})".format(*(f"{number:.{digits}f}" for number in (value, *interval)))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def say(line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def generation_row(generation: Generation) -> dict[str, float]:
    fields = dataclasses.asdict(generation)
    notes = fields.pop("notes")
    return {"generation": fields.pop("index"), **fields.pop("best"), **fields, **notes}
