"""From a trained supernet to the file that a device keeps: search, extract, prune, train on, quantise, store.

    supernet pipeline --run runs/mine --output pipelines/mine
    supernet pipeline --run runs/mine --limits macs=2e6 --tune int8 --output pipelines/mine
    supernet pipeline --run runs/mine --subnet subnets/mine --stages tune quantise --output pipelines/mine

Each stage is a command (search and extract, prune, finetune, quantise, compress) on a folder of OUTPUT, and works on
what the last one left that stays. After each, the test images give the accuracy with its standard error, and its drop;
the file gives the bytes; and the network and the one before it are timed in turns by ONNX Runtime on this machine. A
stage that makes the device slower is left out, and pruning, which costs accuracy, where it does not make it measurably
faster: with the figures that say so. Writes OUTPUT/pipeline.json and OUTPUT/pipeline.svg. Killed, it goes on when it is
started again in the same way. Two minutes for digits.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch

from compress.container import load_compressed
from compress.deep_compression import CompressConfig
from compress.pipeline import Record, StageResult, plot_stages, read_record, reason_to_leave_out
from compress.quantisation.limits import Drop, drop
from compress.quantisation.training import INT8_FILE
from compress.sensitivity import logits
from predictors import this_device
from predictors.measuring.runtimes import onnx_timer
from predictors.measuring.turns import time_ratio, turns_ms
from search.settings import SearchJob
from supernet.artifacts.atomic import write_folder
from supernet.artifacts.export import export_onnx, onnx_runner
from supernet.artifacts.ownership import owned
from supernet.artifacts.runs import Job, open_data
from supernet.artifacts.subnet import load_subnet, save_subnet
from supernet.artifacts.subnet_config import read_subnet_config
from supernet.conditions import ABSENT, only_where
from supernet.errors import Unattainable
from supernet.families.named import SPACES
from supernet.training.data import ImageData
from supernet_cli import compress, extract, finetune, model_training, prune, quantise, search
from supernet_cli.command_line import console
from supernet_cli.flags import parse_flags

StageName = Literal["prune", "tune", "quantise", "store"]
FLOAT_FILE, STORED_FILE, DECODED_FILE = "model.onnx", "network.compressed", "decoded.onnx"
TURNS = 40  # in which networks are timed


@dataclass(frozen=True)
class Arguments:
    run: Path
    """Folder of the training run."""
    output: Path
    """Folder for all stages."""
    subnet: Path | None = None
    """Folder of a subnet of the run to begin with, instead of a search."""
    stages: tuple[StageName, ...] = ("prune", "tune", "quantise", "store")
    """What is done with the subnet, in this order."""
    limits: Annotated[tuple[str, ...], only_where(subnet=ABSENT)] = ()
    """Limits of the search, as of `supernet search`."""
    predictors: Annotated[tuple[Path, ...], only_where(subnet=ABSENT)] = ()
    """Folders of latency predictors, one a device."""
    evaluations: Annotated[int, only_where(subnet=ABSENT)] = SearchJob.evaluations
    """Architectures that the search evaluates."""
    prune_limits: Annotated[tuple[str, ...], only_where(stages=("prune",))] = ()
    """Limits of pruning, as of `supernet prune`; 70 % of the multiply-accumulates without any."""
    prune_step: Annotated[int | None, only_where(stages=("prune",))] = None
    """Numbers of channels are multiples of it; by default what this device likes, measured."""
    tune: Annotated[Literal["fp32", "int8"], only_where(stages=("tune",))] = "fp32"
    """What the network is trained on for; int8 rounds in training, and what is quantised then is what was trained."""
    epochs: Annotated[int | None, only_where(stages=("tune",))] = None
    """Epochs of training on; by default as of `supernet finetune`."""
    quantise_limits: Annotated[tuple[str, ...], only_where(stages=("quantise",))] = ("accuracy_drop=0.5",)
    """Limits of quantisation, as of `supernet quantise`."""
    bits: Annotated[int, only_where(stages=("store",))] = 8
    """Bits of the codebooks of the stored file, 0 for none, as of `supernet compress --post-training`; none for weights
    that were trained for int8, which are few values already."""
    threads: int = 1
    """Threads of ONNX Runtime where milliseconds are measured."""
    space: str | None = None
    """The run's space, said again if it is code of your own: path/to/file.py:function."""
    seed: int = 0
    """Seed of the search."""


class Stage(NamedTuple):
    """A stage: what makes its folder of the subnet's before it, if that is not there, and which files are its network
    in."""

    name: str
    make: Callable[[Path, Path], object]
    runs: str = FLOAT_FILE  # what ONNX Runtime runs
    keeps: str | None = None  # what the device keeps; by default what it runs
    must_be_faster: bool = False
    only_values: bool = False  # of weights change, so that it computes as long as before


def main() -> None:
    pipeline(parse_flags(Arguments, __doc__))


def pipeline(arguments: Arguments) -> None:
    """What the command does."""
    unknown = {"tune", "quantise"} - {*arguments.stages} if arguments.tune == "int8" else set()
    if unknown:
        raise ValueError(f"training for int8 is seen in the stages tune and quantise: --stages lacks {min(unknown)}")
    job = model_training.job_of(arguments.run, "digits", arguments.space)
    if "prune" in arguments.stages and SPACES.is_own(job.space):
        kept = " ".join(stage for stage in arguments.stages if stage != "prune")
        raise ValueError(f"subnets of {job.space}, code of your own, are not pruned: say --stages {kept}")
    data = open_data(job.data, job.train.seed, job.execution.workers)
    if not isinstance(data, ImageData):
        raise ValueError("a pipeline is for images with classes, and the run's data are something else")
    settings = json.loads(json.dumps(dataclasses.asdict(arguments) | {"output": None}, default=str))
    device = this_device("onnxruntime", threads=arguments.threads)
    with owned(arguments.output):
        path = arguments.output / "pipeline.json"
        record = read_record(path) if path.exists() else Record(settings, dataclasses.asdict(device))
        if record.settings != settings:
            changed = [name for name in settings if settings[name] != record.settings.get(name)]
            raise ValueError(f"{path} was begun with other {', '.join(changed)}: name another folder")
        judge = Judge(arguments, data)
        for stage in stages(arguments, job):
            if record.of(stage.name) is None:
                record = record.with_stage(judge(stage, record.last))
                record.write(path)
            say(record.of(stage.name), arguments.output)
        plot_stages(arguments.output / "pipeline.svg", record.stages)
    last, name = record.last, record.device["name"]
    console.print(
        f"The network is {arguments.output / last.folder / last.file}; all stages, on {data.count(data.test)} test "
        f"images and {name}, are in {path} and pipeline.svg beside it.",
        highlight=False,
        soft_wrap=True,
    )


def stages(arguments: Arguments, job: Job) -> list[Stage]:
    """What is done, in order."""
    own = {
        "prune": Stage("prune", lambda source, folder: _prune(arguments, source, folder), must_be_faster=True),
        "tune": Stage("tune", lambda source, folder: _tune(arguments, job, source, folder), only_values=True),
        "quantise": Stage("quantise", lambda source, folder: _quantise(arguments, source, folder), INT8_FILE),
        "store": Stage(
            "store", lambda source, folder: _store(arguments, job, source, folder), DECODED_FILE, STORED_FILE
        ),
    }
    return [Stage("extract", lambda _, folder: _extract(arguments, folder)), *(own[name] for name in arguments.stages)]


class Judge:
    """Makes a stage, and tells what it brought."""

    def __init__(self, arguments: Arguments, data: ImageData) -> None:
        self._output, self._data = arguments.output, data
        self._device = this_device("onnxruntime", threads=arguments.threads)

    def __call__(self, stage: Stage, before: StageResult | None) -> StageResult:
        folder = self._output / stage.name
        try:
            stage.make(self._output / before.folder if before else folder, folder)
        except Unattainable as error:
            return StageResult(stage.name, left_out=str(error))
        config = read_subnet_config(folder if (folder / "config.json").exists() else self._output / before.folder)
        testing = list(self._data.evaluation_batches(self._data.test, config.input_size[-1]))
        file = folder / (stage.keeps or stage.runs)
        networks = [folder / stage.runs] + ([self._output / before.folder / _runs(before)] if before else [])
        answers = [logits(onnx_runner(path), testing) for path in networks]
        turns = turns_ms([onnx_timer(path, self._device, (testing[0][0][:1],)) for path in networks], TURNS)
        right = (answers[0].argmax(1) == torch.cat([labels for _, labels in testing])).double()
        result = StageResult(
            stage.name,
            folder=stage.name,
            file=file.name,
            accuracy=right.mean().item(),
            accuracy_error=(right.std() / len(right) ** 0.5).item(),
            bytes=file.stat().st_size,
            milliseconds=float(np.median(turns[:, 0])),
        )
        return result if before is None else _compared(result, stage, drop(answers[1], answers[0], testing), turns)


def _compared(result: StageResult, stage: Stage, lost: Drop, turns: np.ndarray) -> StageResult:
    """`result` beside the network before it, whose milliseconds are the second in `turns`."""
    ratio = time_ratio(turns[:, 0], turns[:, 1])
    result = dataclasses.replace(
        result,
        drop=lost.points,
        drop_error=lost.standard_error,
        time_ratio=ratio.ratio,
        time_ratio_error=ratio.standard_error,
        verdict=ratio.verdict,
    )
    if stage.only_values:
        return result
    return dataclasses.replace(result, left_out=reason_to_leave_out(result, stage.must_be_faster))


def _runs(result: StageResult) -> str:
    return DECODED_FILE if result.file == STORED_FILE else result.file


def _extract(arguments: Arguments, folder: Path) -> None:
    if (folder / "config.json").exists():
        return
    if arguments.subnet is not None:
        with write_folder(folder, last="config.json") as temporary:
            save_subnet(temporary, load_subnet(arguments.subnet, space=arguments.space))
        return
    found = arguments.output / "search"
    if not (found / "front.csv").exists():
        history = found / "search.jsonl"
        search.search(
            search.Arguments(
                run=arguments.run,
                space=arguments.space,
                output=found,
                limits=arguments.limits,
                predictors=arguments.predictors,
                evaluations=arguments.evaluations,
                population=min(100, arguments.evaluations),
                seed=arguments.seed,
                resume=history.exists(),
                measure=False,
            )
        )
    extract.extract(extract.Arguments(arguments.run, folder, history=found / "search.jsonl", space=arguments.space))


def _prune(arguments: Arguments, source: Path, folder: Path) -> None:
    if not (folder / "config.json").exists():
        job = model_training.job_of(arguments.run, "digits", arguments.space)
        prune.prune(
            prune.Arguments(
                job.data,
                str(source),
                folder,
                limits=arguments.prune_limits,
                step=arguments.prune_step,
                space=arguments.space,
                threads=arguments.threads,
                workers=job.execution.workers,
                seed=job.train.seed,
            )
        )


def _tune(arguments: Arguments, job: Job, source: Path, folder: Path) -> None:
    known = argparse.Namespace(subnet=source, space=arguments.space)
    training = dataclasses.replace(finetune.fine_tuning(job, known), precision=arguments.tune)
    if arguments.epochs is not None:
        training = dataclasses.replace(training, train=dataclasses.replace(training.train, epochs=arguments.epochs))
    asked = finetune.FineTuning(training, folder, run=arguments.run, subnet=source, resume=True)
    if not (folder / "config.json").exists():
        finetune.finetune(asked)
    elif (trained := model_training.within(folder) / INT8_FILE).exists():
        finetune.take_along(trained, asked)


def _quantise(arguments: Arguments, source: Path, folder: Path) -> None:
    if (folder / "config.json").exists():
        return
    if arguments.tune == "int8" and (source / INT8_FILE).exists() and source.name == "tune":
        with write_folder(folder, last="config.json") as temporary:
            for name in (INT8_FILE, FLOAT_FILE, "model.safetensors", "config.json"):
                shutil.copy(source / name, temporary / name)
        return
    job = model_training.job_of(arguments.run, "digits", arguments.space)
    quantise.quantise(
        quantise.Arguments(
            job.data,
            str(source),
            folder,
            limits=arguments.quantise_limits,
            space=arguments.space,
            threads=arguments.threads,
            workers=job.execution.workers,
            seed=job.train.seed,
        )
    )


def _store(arguments: Arguments, job: Job, source: Path, folder: Path) -> None:
    known = argparse.Namespace(subnet=source, space=arguments.space)
    file = folder / STORED_FILE
    if not file.exists():
        bits = 0 if arguments.tune == "int8" else arguments.bits  # weights in steps are stored exactly
        as_it_is = CompressConfig(bits=bits, post_training=True)
        training = dataclasses.replace(compress.settings(job, known), compress=as_it_is)
        compress.compress(compress.Arguments(training, file, run=arguments.run, subnet=source, resume=True))
    model, config = load_compressed(file, space=arguments.space)
    export_onnx(model, folder / DECODED_FILE, config.example(), names=config, dynamic_batch=True)


def say(result: StageResult, output: Path) -> None:
    """One line on a stage."""
    if result.accuracy is None:
        return console.print(f"{result.stage}: left out. {result.left_out}", highlight=False, soft_wrap=True)
    told = f"{result.stage}: {result.accuracy:.2%} right, give or take {result.accuracy_error:.2%}"
    told += f"; {result.bytes:,} bytes; {result.milliseconds:.3g} ms"
    if result.time_ratio is not None:
        told += f", {result.time_ratio:.3f} of before, give or take {result.time_ratio_error:.3f} ({result.verdict})"
    told += f". Left out, {result.left_out}" if result.left_out else ""
    return console.print(told, highlight=False, soft_wrap=True)
