"""Take a subnet out of a trained supernet as a plain timm model.

    supernet extract --run runs/digits --arch '{"resolution": 24, ...}' --output subnets/small
    supernet extract --run runs/digits --history runs/digits/search.jsonl --line 17 --output subnets/small
    supernet extract --run runs/digits --largest --output subnets/largest

Recalibrates BatchNorm on training examples, tests the subnet on the test examples, and writes config.json,
model.safetensors, model.onnx, model.int8.onnx (static, calibrated on training examples), model.pt2 (torch.export) and
with --fp16 model.fp16.onnx, of which the ONNX files say in their metadata which classes they tell apart and how images
are prepared;
`supernet.artifacts.subnet.load_subnet` gives the model back. Prints how each file agrees with the model on test images.
A quarter of a minute for digits.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from compress.quantisation import export_int8, quantise
from compress.quantisation.ranges import CALIBRATION_IMAGES
from search.history import best_archs, read_history
from search.margin import probability_within
from search.report.answered import answered
from search.report.facts import facts
from search.report.limits import latency_limit
from search.report.sources import HISTORY, TRIALS, read_sources
from search.report.taken_out import note_taken_out
from supernet.answers.answers import Answers, answers_of
from supernet.artifacts.atomic import write_files, write_folder
from supernet.artifacts.export import agreement, export_fp16, onnx_runner
from supernet.artifacts.runs import Run, load_run
from supernet.artifacts.subnet import Subnet, export_subnet, save_subnet, take_out
from supernet.conditions import GIVEN, only_where
from supernet.evaluation import CALIBRATION_BYTES, evaluate
from supernet.space import Arch, SearchSpace
from supernet.tasks import Classification
from supernet.training.data import ImageData
from supernet.training.execution import Execution, pick_device, tf32
from supernet_cli.command_line import DeviceFlag, console
from supernet_cli.flags import parse_flags

AGREEMENT = 0.95
"""Part of the images that model.int8.onnx gives the class of the model for, at least, if nothing is said of it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    run: Path
    """Folder of the training run."""
    output: Path
    """Folder for the subnet."""
    arch: str | None = None
    """The architecture as a JSON object."""
    history: Path | None = None
    """History of a search to take the architecture from."""
    line: Annotated[int | None, only_where(history=GIVEN)] = None
    """Which evaluation of the history, counted from 1; by default the one of the highest first score."""
    largest: bool = False
    """Take the largest architecture."""
    smallest: bool = False
    """Take the smallest architecture."""
    calibration_images: int | None = None
    """Training images for BatchNorm; by default as in training."""
    calibration_bytes: int = CALIBRATION_BYTES
    """Bytes that the activations of these images may take at once; where those of all take more, BatchNorm is
    recalibrated in chunks of them."""
    refit_images: int | None = None
    """Fit the weights, layer by layer, to do what the largest does on so many training images, whose labels are not
    looked at: for a subnet of a pretrained model that was not trained on (docs/methods/refitting.md)."""
    device: DeviceFlag = Execution.device
    onnx: bool = True
    """Write model.onnx, model.int8.onnx and model.pt2 too."""
    fp16: Annotated[bool, only_where(onnx=GIVEN)] = False
    """Write model.fp16.onnx as well, in half precision, for GPUs and phones."""
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
    extract(parse_flags(Arguments, __doc__))


def extract(arguments: Arguments) -> None:
    """What the command does."""
    if (arguments.output / "config.json").exists():
        raise ValueError(f"{arguments.output} holds a subnet already; name another folder")
    device = pick_device(arguments.device)
    trained = load_run(
        arguments.run, arguments.root, arguments.test_root, space=arguments.space, dataset=arguments.dataset
    )
    arch = chosen_arch(arguments, trained.net.space)
    latencies = list(latency_lines(arguments.history, arch)) if arguments.history else []
    for line in latencies:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    data, task, resolution = trained.data, trained.family.task, trained.family.resolution(arch)
    trained.net.to(device)
    with tf32(False):
        subnet = take_out(
            trained, arch, arguments.calibration_images, arguments.calibration_bytes, arguments.refit_images
        )
        answers = tested(subnet, trained, arch, device)
    subnet.config.found.update(found_by(search_of(arguments.history) or arguments.run, latencies))
    subnet.model.cpu()
    with write_folder(arguments.output, last="config.json") as folder:
        save_subnet(folder, subnet, onnx=arguments.onnx)
        write_files(data.files(), folder)
        for name, value in subnet.config.facts.items():
            console.print(f"{name}: {value:.6g}", highlight=False)
        if arguments.onnx:
            some = data.calibration_batches(resolution, CALIBRATION_IMAGES, trained.job.train.seed)
            calibration = [task.inputs(batch, arch) for batch in some]
            test = task.inputs(next(iter(data.evaluation_batches(data.test, resolution))), arch)
            export_int8(
                quantise(subnet.model, calibration),
                folder / "model.int8.onnx",
                subnet.config.example(),
                names=subnet.config,
                dynamic_batch=True,
                metadata=subnet.config.metadata(),
            )
            int8 = agreement(subnet.model, onnx_runner(folder / "model.int8.onnx"), test)
            agreements = {**export_subnet(folder, subnet, test), "model.int8.onnx": int8}
            if arguments.fp16:
                export_fp16(folder / "model.onnx", folder / "model.fp16.onnx")
                half = onnx_runner(folder / "model.fp16.onnx")
                agreements["model.fp16.onnx"] = agreement(subnet.model, half, test)
            for name, found in agreements.items():
                same, outputs = "", "outputs"
                if isinstance(task, Classification) and found.top1 is not None:
                    same, outputs = f"the same class for {found.top1:.1%}, ", "logits"
                console.print(f"{name}: {same}{outputs} differ by at most {found.difference:.1e}", highlight=False)
            if int8.top1 is not None and int8.top1 < AGREEMENT:
                logger.warning(
                    "model.int8.onnx gives the same class for %.0f %% of the images only: supernet quantise leaves in "
                    "float what int8 ruins, and supernet finetune --precision int8 trains for it",
                    100 * int8.top1,
                )
    if search := search_of(arguments.history):
        kept = None if answers is None else answered(answers, data.classes, data.test)
        note_taken_out(search, arch, arguments.output, subnet.config.facts, data.count(data.test), kept)
    console.print(f"The subnet is in {arguments.output}.")


def found_by(folder: Path, latencies: Sequence[str]) -> dict[str, str]:
    """What is known of how a subnet of the search or the run in `folder` was found, and lines on its latencies. Without
    commands, which name places on this machine."""
    sources = read_sources([folder], trainings_alone=True)
    found = {
        f"{part['name']}, {what}": which
        for part in facts(sources)
        for what, which in part["pairs"]
        if what != "command"
    }
    for line in latencies:
        device, _, said = line.partition(": ")
        known = found.get(f"latency on {device}")
        found[f"latency on {device}"] = said if known is None else f"{known}; {said}"
    return found


def tested(subnet: Subnet, trained: Run, arch: Arch, device: torch.device) -> Answers | None:
    """Put what `subnet` is worth on the test examples, run on `device`, among its facts; a classifier's answers to test
    images, in the order of these."""
    data, task = trained.data, trained.family.task
    model, batches = subnet.model.to(device), data.evaluation_batches(data.test, trained.family.resolution(arch))
    if not (isinstance(data, ImageData) and type(task) is Classification):
        subnet.config.facts.update(evaluate(model, task, batches, arch))
        return None
    answers = answers_of(model, batches)
    subnet.config.facts[task.metric] = answers.quality.top1
    return answers


def latency_lines(history: Path, arch: Arch) -> Iterator[str]:
    """How surely the architecture keeps within the latency limits of the search that it is from."""
    folder = search_of(history)
    if folder is None:
        return
    sources = read_sources([folder])
    search = next((search for search in sources.searches if search.history == history), None)
    for device in sources.devices if search else ():
        limit_ms = latency_limit(search, device)
        if not math.isfinite(limit_ms):
            continue
        latency_ms, error_ms = (float(value[0]) for value in device.predictor.predict([arch]))
        sure = probability_within(device.predictor, [arch], limit_ms)[0]
        yield (
            f"{device.name}: predicted {latency_ms:.3g} ms, give or take {error_ms:.2g}; it keeps within the limit of "
            f"{limit_ms:g} ms with a probability of {sure:.0%}"
        )
        for row in device.measurements:
            if row.arch == arch:
                slower = ", slower than the limit" if row.latency_ms > limit_ms else ""
                yield f"{device.name}: measured {row.latency_ms:.3g} ms{slower}"


def search_of(history: Path | None) -> Path | None:
    """The folder of the search or sweep whose `history` that is; None if it does not lie where these leave it, with
    their predictors beside it."""
    if history is None:
        return None
    folder = history.parent.parent if history.parent.name == TRIALS else history.parent
    return folder if history in (folder / HISTORY, folder / TRIALS / history.name) else None


def chosen_arch(arguments: Arguments, space: SearchSpace) -> Arch:
    a = arguments
    return arch_of(space, a.arch, a.history, a.line, largest=a.largest, smallest=a.smallest)


def arch_of(
    space: SearchSpace,
    arch: str | None = None,
    history: Path | None = None,
    line: int | None = None,
    *,
    largest: bool = False,
    smallest: bool = False,
) -> Arch:
    """The architecture that is said in one of these ways; ValueError if it is said in none or in several."""
    if sum([arch is not None, history is not None, largest, smallest]) != 1:
        raise ValueError("say which architecture: one of --arch, --history, --largest and --smallest")
    if largest or smallest:
        return space.largest if largest else space.smallest
    if arch is not None:
        return space.validate(Arch.from_json(arch))
    assert history is not None
    if line is None:
        return best_archs(history, 1)[0]
    evaluations = read_history(history)[1]
    if not 1 <= line <= len(evaluations):
        raise ValueError(f"{history} has evaluations 1 to {len(evaluations)}, not {line}")
    return evaluations[line - 1].arch
