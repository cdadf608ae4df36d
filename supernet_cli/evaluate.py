"""What networks are worth on the same examples: accuracy, calibration, latency on this machine, MACs and bytes.

    supernet evaluate subnets/mine subnets/tuned models/mine --run runs/mine
    supernet evaluate subnets/mine resnet18=resnet18.pth --input-size 64 --recipe cifar10 --root images/
    supernet evaluate mobilenetv3_large_100 resnet50 --recipe alphanet --root imagenet/ --json figures.json
    supernet evaluate subnets/mine subnets/tuned --run runs/mine --int8 --robustness --output evaluation
    supernet evaluate subnets/mine subnets/mine/model.int8.onnx --run runs/mine
    supernet evaluate subnets/points --space mine.py:family --dataset mine.py:points

A network is the folder of a saved subnet, a file of `supernet compress`, an ONNX file of `supernet extract` (such as
model.int8.onnx; --robustness and --int8 are for the others), NAME=FILE for a timm model with weights for these classes,
or NAME for one with timm's pretrained weights and classes. One that tells other classes apart, by name
or in their order, is refused, and so is a FILE that is not of the model or has no classifier for as many classes. Each
network gets the test images at its own size, prepared as it was trained: a subnet knows how, a timm model too, and what
is in a FILE is prepared by the flags. Top-1, top-5 and the expected calibration error (15 bins) are from 0 to 1; a
latency is the median of 50 runs on one example, the networks taking turns; bytes are those of the file with the
weights. Each network is compared with the first one, image by image (McNemar's test). --output writes the accuracy of
each class, which classes are taken for which, how right answers are by how sure they are, and a page of the surest
errors. --robustness adds what is left of the accuracy on images that are spoilt in eight ways at five strengths, and
under attack, for 46 passes over some images; --int8 what the network is worth as an int8 file (extra onnx). Seconds for
digits. Subnets of another task than images with classes are judged by its metrics, on the test
examples of a dataset of your own.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from rich.table import Column, Table

from compress.container import load_compressed
from compress.quantisation import export_int8, quantise
from compress.quantisation.ranges import CALIBRATION_IMAGES
from predictors import prepare, this_device
from predictors.device import Device
from predictors.measuring import runtimes
from predictors.measuring.load import Watch, doubts
from predictors.measuring.runtimes import Timer, onnx_timer, random_inputs
from predictors.measuring.turns import turns_ms
from search.certainty import LEVEL, difference_p_value, holm
from supernet.answers.answers import Answers, answers_of
from supernet.artifacts import provenance
from supernet.artifacts.atomic import write_json
from supernet.artifacts.export import onnx_runner
from supernet.artifacts.onnx_network import OnnxNetwork, load_onnx
from supernet.artifacts.runs import open_data
from supernet.artifacts.subnet import Subnet, check_classes, load_network, load_subnet
from supernet.artifacts.subnet_config import COSTS
from supernet.conditions import ABSENT, GIVEN, only_where, unread
from supernet.evaluation import evaluate
from supernet.space import Arch
from supernet.tasks import Classification, MultiLabel, Task
from supernet.training.data import Data, DataConfig, ImageData
from supernet.training.data.config import TRAINING
from supernet.training.execution import Execution, pick_device, tf32
from supernet_cli.answers_folder import write_answers
from supernet_cli.command_line import DeviceFlag, console
from supernet_cli.flags import parse_flags
from supernet_cli.model_training import said_job
from supernet_cli.robustness import robustness

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    data: Annotated[DataConfig, tyro.conf.arg(name=""), unread(*TRAINING)]
    networks: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders of saved subnets, compressed files, ONNX files, NAME=FILE or NAME of timm models."""
    recipe: Annotated[str, only_where(run=ABSENT)] = "digits"
    """Recipe that says which images."""
    run: Path | None = None
    """Folder of a supernet's training run that says so instead."""
    space: str | None = None
    """The space of saved subnets and of the run, said again if it is code of your own: path/to/file.py:function."""
    input_size: int | None = None
    """Pixels a side of timm models' images; by default each model's own."""
    latency: bool = True
    """Measure the latency on this machine, too."""
    runtime: Annotated[str, only_where(latency=GIVEN)] = "onnxruntime"
    """What runs the networks then: torch, torch_compile, onnxruntime, openvino, executorch, litert, tensorrt,
    cuda or cuda_graph."""
    precision: Annotated[str, only_where(latency=GIVEN)] = "fp32"
    """fp32, int8 (onnxruntime) or tf32 (cuda, cuda_graph), of the latency alone."""
    threads: Annotated[int, only_where(latency=GIVEN)] = 1
    """Threads of the runtime."""
    workers: int | None = Execution.workers
    """Processes that load images; 0 loads in this one, None is as many as seem right."""
    device: DeviceFlag = Execution.device
    seed: int = 0
    """Seed of the training run, which the split into parts follows from."""
    json: Path | None = None
    """File for the figures."""
    output: Path | None = None
    """Folder for each network's answers: tables, pictures and a page of errors (classifiers of images alone)."""
    errors: Annotated[int, only_where(output=GIVEN)] = 60
    """Errors on that page, at most."""
    int8: bool = False
    """Evaluate each network in int8, too, by ONNX Runtime."""
    robustness: bool = False
    """Evaluate each network on spoilt images and under attack, too."""
    robustness_images: Annotated[int, only_where(robustness=GIVEN)] = 500
    """Test images that this is done on, at most."""
    pgd_epsilon: Annotated[float, only_where(robustness=GIVEN)] = 1.0
    """The most that the attack changes a value of an image by, in 255ths."""


def main() -> None:
    job = said_job(Arguments)
    default = Arguments(job.data, tyro.MISSING, seed=job.train.seed, workers=job.execution.workers)
    arguments = parse_flags(Arguments, __doc__, default=default, omit_prefixes=True)
    if not arguments.networks:
        raise ValueError("say which networks to evaluate: folders of subnets, or names of timm models")
    if arguments.errors < 0 or arguments.robustness_images < 1 or arguments.pgd_epsilon <= 0:
        raise ValueError(
            "errors is 0 or more, robustness_images at least 1 and pgd_epsilon above 0, not "
            f"{arguments.errors}, {arguments.robustness_images} and {arguments.pgd_epsilon}"
        )
    where, device = pick_device(arguments.device), None
    if arguments.latency:
        device = this_device(arguments.runtime, arguments.precision, arguments.threads)
        runtimes.check(device)
    data = open_data(arguments.data, arguments.seed, arguments.workers)
    subnets = {name: any_opened(name, data, arguments) for name in arguments.networks}
    with tf32(False):
        judged = [judge(name, subnet, data, where, arguments) for name, subnet in subnets.items()]
    rows = [own.figures for own in judged]
    if device is not None:
        watch = Watch()
        for row, latency_ms in zip(rows, latencies_ms(list(subnets.values()), device)):
            row["latency_ms"] = latency_ms
        if doubt := doubts(watch.load()):
            logger.warning("%s", doubt)
    what = "images" if isinstance(data, ImageData) else "examples"
    pairs = paired({name: own.answers for name, own in zip(subnets, judged) if own.answers is not None})
    console.print(table(rows, f"{data.count(data.test)} test {what}" + (f", {device.name}" if device else "")))
    for pair in pairs:
        console.print(str(pair), highlight=False, markup=False, soft_wrap=True)
    if arguments.output:
        console.print(f"Each network's answers are in {arguments.output}.", highlight=False, soft_wrap=True)
    if arguments.json:
        content = {
            "command": provenance.command(),
            "date": provenance.today(),
            "versions": provenance.versions(),
            "device": device and dataclasses.asdict(device),
            "rows": rows,
            "paired": [pair._asdict() for pair in pairs],
        }
        write_json(arguments.json, content)


def any_opened(name: str, data: Data, arguments: Arguments) -> Subnet:
    """The network that `name` stands for, which may be an ONNX file, too."""
    if not name.endswith(".onnx"):
        return opened(name, data, arguments.input_size, arguments.space)
    if arguments.robustness or arguments.int8:
        raise ValueError(f"--robustness and --int8 are not for ONNX files: take the folder of {name}")
    if arguments.latency and arguments.runtime != "onnxruntime":
        raise ValueError(f"{name} runs by onnxruntime, not by {arguments.runtime}: say that, or --no-latency")
    subnet = load_onnx(name)
    check_suits(name, subnet, data)
    return subnet


def opened(name: str, data: Data, input_size: int | None, space: str | None = None) -> Subnet:
    """The network that `name` stands for; ValueError if it is not of these data, such as for other classes."""
    if not isinstance(data, ImageData):
        if not Path(name).exists():
            raise ValueError(f"there is no folder of a saved subnet {name!r}; other networks are timm's, for images")
        subnet = (load_compressed if Path(name).is_file() else load_subnet)(name, space=space)
        own, given = (
            json.loads(json.dumps({"classes": source.classes, **source.family_arguments}))
            for source in (subnet.config, data)
        )
        if own != given:
            raise ValueError(f"{name} is of other data: there {own}, and here {given}")
        return subnet
    if Path(name).is_file():
        subnet = load_compressed(name, space=space)
    else:
        model, _, weights = (name, "", "") if Path(name).is_dir() else name.partition("=")
        subnet = load_network(model, data.config, data.classes, weights or None, input_size, space=space)
    if subnet.config.input_size is None:
        raise ValueError(
            f"{name} takes {', '.join(subnet.config.input_names)}, and the data are images: say its --dataset"
        )
    check_suits(name, subnet, data)
    return subnet


def check_suits(name: str, subnet: Subnet, data: Data) -> None:
    """ValueError if the network of images called `name` is not of these data, such as for other classes."""
    if not isinstance(data, ImageData):
        raise ValueError(f"{name} is for images, and the data are {type(data).__name__}")
    check_classes(name, subnet.config.classes, data.classes)
    if data.several_labels != isinstance(task_of(subnet), MultiLabel):
        raise ValueError(f"{name} is for images with {'one class' if data.several_labels else 'several classes'} each")


def task_of(subnet: Subnet) -> Task:
    if isinstance(subnet.model, OnnxNetwork):
        return MultiLabel(Classification()) if subnet.config.several_labels else Classification()
    return subnet.config.family().task


class Judged(NamedTuple):
    """What a network is worth on the test examples, and its costs."""

    figures: dict[str, Any]
    answers: Answers | None  # of a classifier of images


def judge(name: str, subnet: Subnet, data: Data, device: torch.device, arguments: Arguments) -> Judged:
    """The network called `name`, run on `device`; writes its answers if the arguments say where."""
    model, config = subnet
    costs = {cost: config.facts.get(cost) for cost in COSTS} | {"stored_bytes": file_bytes(name, subnet)}
    task, model = task_of(subnet), model.to(device)
    if isinstance(data, ImageData):
        data = dataclasses.replace(data, config=config.preparing(data.config))
    if not (isinstance(data, ImageData) and isinstance(task, Classification)):
        if arguments.output or arguments.robustness or arguments.int8:
            raise ValueError("--output, --robustness and --int8 are for classifiers of images: leave them out")
        arch = Arch(config.arch)
        size = config.input_size[-1] if config.input_size else config.family().resolution(arch)
        found = evaluate(model, task, data.evaluation_batches(data.test, size), arch)
        model.cpu()
        return Judged({"network": name, **found, **costs}, None)
    resolution = config.input_size[-1]
    answers = answers_of(model, data.evaluation_batches(data.test, resolution))
    found = {"network": name, "resolution": resolution, **answers.quality._asdict()}
    if arguments.robustness:
        spoilt = robustness(
            model, data, resolution, arguments.robustness_images, arguments.pgd_epsilon / 255, arguments.seed
        )
        found |= {"corrupted": spoilt.corrupted, "pgd": spoilt.pgd, "robustness": dataclasses.asdict(spoilt)}
    model.cpu()
    if arguments.int8:
        in_int8 = answers_in_int8(subnet, data, arguments.seed)
        same = (in_int8.classes[:, 0] == answers.classes[:, 0]).double().mean().item()
        found |= {"int8_top1": in_int8.quality.top1, "int8_agreement": same}
    if arguments.output:
        folder = arguments.output / name.strip("./").replace("/", "-").replace("=", "-")
        write_answers(folder, answers, config.classes, data.test, arguments.errors)
    return Judged(found | costs, answers)


def answers_in_int8(subnet: Subnet, data: ImageData, seed: int) -> Answers:
    """Those of the network as the file model.int8.onnx of `supernet extract`, to the test images."""
    resolution = subnet.config.input_size[-1]
    batches = data.calibration_batches(resolution, CALIBRATION_IMAGES, seed)
    network = quantise(subnet.model, [(images,) for images, *_ in batches])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.int8.onnx")
        export_int8(network, path, subnet.config.example(), names=subnet.config, dynamic_batch=True)
        return answers_of(onnx_runner(path), data.evaluation_batches(data.test, resolution))


class Pair(NamedTuple):
    """A network beside the first one, on the same images."""

    network: str
    first: str
    difference: float  # of the accuracies, from -1 to 1; above 0 the network is better than the first
    p_value: float  # McNemar's, two-sided, corrected by Holm for the number of networks
    standard_error: float  # of the difference, that is the mean of paired differences; NaN for a single image

    def __str__(self) -> str:
        points = f"{100 * abs(self.difference):.2f} points {'above' if self.difference > 0 else 'below'}"
        is_found = self.p_value < LEVEL
        verdict = f"{points} {self.first}" if is_found else f"not distinguishable from {self.first} ({points} it)"
        return f"{self.network}: {verdict}, p = {self.p_value:.2g}"


def paired(answers: Mapping[str, Answers]) -> list[Pair]:
    """Each network but the first beside the first."""
    if len(answers) < 2:
        return []
    (first, reference), *others = ((name, own.right.double().numpy()) for name, own in answers.items())
    p_values = holm([difference_p_value(reference, right) for _, right in others])
    gains = [(name, right - reference) for name, right in others]
    return [
        Pair(name, first, float(gain.mean()), float(p_value), standard_error(gain))
        for (name, gain), p_value in zip(gains, p_values)
    ]


def standard_error(values: np.ndarray) -> float:
    """Of their mean."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else math.nan


def file_bytes(name: str, subnet: Subnet) -> int:
    """Bytes of the file with the network's weights, or what such a file would hold where there is none."""
    for path in (Path(name), Path(name) / "model.safetensors"):
        if path.is_file():
            return path.stat().st_size
    return sum(tensor.nbytes for tensor in subnet.model.state_dict().values())


def latencies_ms(subnets: Sequence[Subnet], device: Device, rounds: int = 10, runs: int = 5) -> list[float]:
    """Median milliseconds of each network over `rounds` turns of `runs`, each turn after a run to warm up."""
    return medians_ms([timer(subnet, device) for subnet in subnets], rounds, runs)


def timer(subnet: Subnet, device: Device) -> Timer:
    """That of a network on `device`, whose precision an ONNX file has already."""
    example = subnet.config.example()
    if isinstance(subnet.model, OnnxNetwork):
        return onnx_timer(subnet.model.path, device, random_inputs(example, device.batch_size))
    return prepare(subnet.model, device, example)


def medians_ms(timers: Sequence[Timer], rounds: int, runs: int) -> list[float]:
    """Median milliseconds of each timer over `rounds` turns of `runs`, each turn after a run to warm up."""
    return np.median(turns_ms(timers, rounds, runs), axis=(0, 2)).tolist()


PERCENT = {
    "top1": "top-1 (%)",
    "top5": "top-5 (%)",
    "calibration_error": "calibration error (%)",
    "corrupted": "spoilt (%)",
    "pgd": "attacked (%)",
    "int8_top1": "int8 top-1 (%)",
    "int8_agreement": "int8 agrees (%)",
}
COUNTS = {"macs": "MACs", "parameters": "parameters", "stored_bytes": "bytes"}
PLAIN = {"resolution": "pixels", "latency_ms": "ms"}
MOST_COLUMNS = 5  # beside the names, that fit into 80 characters
UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """A row each; a column has one unit, by its largest value. Turned, with a column each, where there are more than
    `MOST_COLUMNS` otherwise, and fewer then."""
    columns = []
    for name in (name for name, value in rows[0].items() if name != "network" and not isinstance(value, dict)):
        values = [row[name] for row in rows]
        if name in COUNTS:
            largest = max((value for value in values if value is not None), default=0)
            scale, unit = next((own for own in UNITS if own[0] <= largest), UNITS[-1])
            heading = f"{COUNTS[name]} ({unit})" if unit else COUNTS[name]
            columns.append((heading, ["" if value is None else f"{value / scale:.4g}" for value in values]))
        elif name in PERCENT:
            columns.append((PERCENT[name], [f"{100 * value:.2f}" for value in values]))
        else:
            columns.append((PLAIN.get(name, name.replace("_", " ")), [f"{value:.4g}" for value in values]))
    names = [row["network"] for row in rows]
    if len(rows) < len(columns) > MOST_COLUMNS:
        turned = Table("", *(Column(name, justify="right", overflow="fold") for name in names), title=title)
        for heading, cells in columns:
            turned.add_row(heading, *cells)
        return turned
    headings = [Column(heading, justify="right") for heading, _ in columns]
    found = Table(Column("network", overflow="fold"), *headings, title=title)
    for row in zip(names, *(cells for _, cells in columns)):
        found.add_row(*row)
    return found
