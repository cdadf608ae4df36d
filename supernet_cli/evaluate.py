"""What networks are worth on the same examples: accuracy, calibration, latency on this machine, MACs and bytes.

    supernet evaluate subnets/mine subnets/tuned models/mine --run runs/mine
    supernet evaluate subnets/mine resnet18=resnet18.pth --input-size 64 --recipe cifar10 --root images/
    supernet evaluate mobilenetv3_large_100 resnet50 --recipe alphanet --root imagenet/ --json figures.json
    supernet evaluate subnets/points --space mine.py:family --dataset mine.py:points

A network is the folder of a saved subnet, a file of `supernet compress`, NAME=FILE for a timm model with weights for
these classes, or NAME for one with timm's pretrained weights and classes. One that tells other classes apart, by name
or in their order, is refused, and so is a FILE that is not of the model or has no classifier for as many classes. Each
network gets the test images at its own size, prepared as it was trained: a subnet knows how, a timm model too, and what
is in a FILE is prepared by the flags. Top-1, top-5 and the expected calibration error (15 bins) are from 0 to 1; a
latency is the median of 50 runs on one example, the networks taking turns; bytes are those of the file with the
weights. Seconds for digits. Subnets of another task than images with classes are judged by its metrics, on the test
examples of a dataset of your own.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from rich.table import Table

from compress.container import load_compressed
from predictors import prepare, this_device
from predictors.device import Device
from predictors.measuring.runtimes import Timer
from supernet.answers.answers import quality
from supernet.artifacts import provenance
from supernet.artifacts.atomic import write_atomically
from supernet.artifacts.runs import open_data
from supernet.artifacts.subnet import Subnet, check_classes, load_network, load_subnet
from supernet.evaluation import evaluate
from supernet.tasks import Classification
from supernet.training.data import Data, DataConfig, ImageData
from supernet.training.execution import Execution, pick_device, tf32
from supernet_cli.command_line import DeviceFlag, console
from supernet_cli.model_training import said_job


@dataclass(frozen=True)
class Arguments:
    data: Annotated[DataConfig, tyro.conf.arg(name="")]
    networks: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders of saved subnets, compressed files, NAME=FILE or NAME of timm models."""
    recipe: str = "digits"
    """Recipe that says which images."""
    run: Path | None = None
    """Folder of a supernet's training run that says so instead."""
    space: str | None = None
    """The space of saved subnets and of the run, said again if it is code of your own: path/to/file.py:function."""
    input_size: int | None = None
    """Pixels a side of timm models' images; by default each model's own."""
    latency: bool = True
    """Measure the latency on this machine, too."""
    runtime: str = "onnxruntime"
    """What runs the networks then: torch, torch_compile, onnxruntime, openvino, cuda or cuda_graph."""
    precision: str = "fp32"
    """fp32, int8 (onnxruntime) or tf32 (cuda, cuda_graph), of the latency alone."""
    threads: int = 1
    """Threads of the runtime."""
    workers: int = Execution.workers
    """Processes that load images; 0 loads in this one."""
    device: DeviceFlag = Execution.device
    seed: int = 0
    """Seed of the training run, which the split into parts follows from."""
    json: Path | None = None
    """File for the figures."""


def main() -> None:
    job = said_job()
    default = Arguments(job.data, tyro.MISSING, seed=job.train.seed, workers=job.execution.workers)
    arguments = tyro.cli(Arguments, default=default, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    if not arguments.networks:
        raise ValueError("say which networks to evaluate: folders of subnets, or names of timm models")
    where = pick_device(arguments.device)
    data = open_data(arguments.data, arguments.seed, arguments.workers)
    subnets = {name: opened(name, data, arguments.input_size, arguments.space) for name in arguments.networks}
    with tf32(False):
        rows = [
            {"network": name, **figures(subnet, data, where), "stored_bytes": file_bytes(name, subnet)}
            for name, subnet in subnets.items()
        ]
    device = None
    if arguments.latency:
        device = this_device(arguments.runtime, arguments.precision, arguments.threads)
        for row, latency_ms in zip(rows, latencies_ms(list(subnets.values()), device)):
            row["latency_ms"] = latency_ms
    what = "images" if isinstance(data, ImageData) else "examples"
    console.print(table(rows, f"{data.count(data.test)} test {what}" + (f", {device.name}" if device else "")))
    if arguments.json:
        content = {
            "command": provenance.command(),
            "date": provenance.today(),
            "versions": provenance.versions(),
            "device": device and dataclasses.asdict(device),
            "rows": rows,
        }
        with write_atomically(arguments.json) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")


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
    check_classes(name, subnet.config.classes, data.classes)
    return subnet


def figures(subnet: Subnet, data: Data, device: torch.device) -> dict[str, float]:
    """What the network is worth on the test examples, and its costs."""
    model, config = subnet
    costs = {name: config.facts[name] for name in ("macs", "parameters")}
    family, model = config.family(), model.to(device)
    if not (isinstance(data, ImageData) and isinstance(family.task, Classification)):
        arch = family.space.validate(config.arch)
        found = evaluate(model, family.task, data.evaluation_batches(data.test, family.resolution(arch)), arch)
        model.cpu()
        return found | costs
    kept = {name: getattr(config, name) for name in ("mean", "std", "interpolation", "crop_pct")}
    own = dataclasses.replace(data, config=dataclasses.replace(data.config, **kept))
    found = quality(model, own.evaluation_batches(own.test, config.input_size[-1]))
    model.cpu()
    return {"resolution": config.input_size[-1], **found._asdict(), **costs}


def file_bytes(name: str, subnet: Subnet) -> int:
    """Bytes of the file with the network's weights, or what such a file would hold where there is none."""
    for path in (Path(name), Path(name) / "model.safetensors"):
        if path.is_file():
            return path.stat().st_size
    return sum(tensor.nbytes for tensor in subnet.model.state_dict().values())


def latencies_ms(subnets: Sequence[Subnet], device: Device, rounds: int = 10, runs: int = 5) -> list[float]:
    """Median milliseconds of each network over `rounds` turns of `runs`, each turn after a run to warm up."""
    return medians_ms([prepare(model, device, config.example()) for model, config in subnets], rounds, runs)


def medians_ms(timers: Sequence[Timer], rounds: int, runs: int) -> list[float]:
    """Median milliseconds of each timer over `rounds` turns of `runs`, each turn after a run to warm up."""
    turns = [[timer(runs + 1)[1:] for timer in timers] for _ in range(rounds + 1)][1:]
    return np.median(np.array(turns), axis=(0, 2)).tolist()


HEADINGS = {
    "network": "network",
    "resolution": "pixels",
    "top1": "top-1",
    "top5": "top-5",
    "calibration_error": "calibration error",
    "macs": "MACs",
    "parameters": "parameters",
    "stored_bytes": "bytes",
    "latency_ms": "ms",
}


def table(rows: Sequence[dict[str, float | str]], title: str) -> Table:
    found = Table(*(HEADINGS.get(name, name.replace("_", " ")) for name in rows[0]), title=title)
    for row in rows:
        found.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    return found
