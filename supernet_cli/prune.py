"""Take channels away from a subnet, as many as a limit wants and the device is faster without.

    supernet prune --subnet subnets/mine --run runs/mine --output subnets/pruned
    supernet prune --subnet subnets/mine --run runs/mine --output subnets/pruned --limits macs=1e6 milliseconds=0.3
    supernet prune --subnet subnets/mine --run runs/mine --output subnets/pruned --importance activations
    supernet prune --subnet subnets/mine --run runs/mine --sensitivity sensitivity.svg

One threshold of importance for the channels of all layers (docs/methods/pruning.md), the lowest that meets the limits;
without any, 70 % of the multiply-accumulates. Numbers of channels are multiples of what this device likes, which is
found by timing layers on it, unless --step says it. BatchNorm is recalibrated on training images and nothing else is
trained: `supernet finetune` or `supernet quantise` go on from the folder, which is written as `supernet extract` does.
Prints the accuracy on the test images and the milliseconds of both networks, measured in turns, and whether the pruned
one is faster, which fewer multiply-accumulates do not make it. With --sensitivity nothing is written but a picture of
the accuracy on held-out images with each layer pruned alone. Half a minute for digits.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import nn

from compress.pruning.sensitivity import plot_sensitivity, sensitivity
from compress.pruning.subnet import Sizes, elastic_channels, pruned, sizes_within, smaller
from predictors import Device, prepare, this_device
from predictors.measuring.turns import time_ratio, turns_ms
from predictors.measuring.widths import liked_step
from supernet.artifacts import provenance
from supernet.artifacts.atomic import write_folder
from supernet.artifacts.runs import open_data
from supernet.artifacts.subnet import Subnet, save_subnet
from supernet.calibration import calibrate
from supernet.channels.importance import AnyImportance, comparable_scores
from supernet.conditions import ABSENT, only_where, unread
from supernet.costs import count_macs, count_parameters
from supernet.evaluation import accuracy
from supernet.tasks import Classification
from supernet.training.data import DataConfig, ImageData
from supernet.training.data.batch import take
from supernet.training.data.config import TRAINING
from supernet_cli.command_line import console
from supernet_cli.evaluate import opened
from supernet_cli.flags import parse_flags
from supernet_cli.model_training import said_job

PART_OF_MACS = 0.7  # if nothing is said
TURNS = 40  # in which networks are timed


@dataclass(frozen=True)
class Arguments:
    data: Annotated[DataConfig, tyro.conf.arg(name=""), unread(*TRAINING)]
    subnet: str
    """Folder of a saved subnet, NAME=FILE or NAME of a timm model."""
    output: Path | None = None
    """Folder for the pruned subnet."""
    limits: Annotated[tuple[str, ...], only_where(sensitivity=ABSENT)] = ()
    """What it keeps within: macs=NUMBER, parameters=NUMBER, milliseconds=MS (measured here); 70 % of its
    multiply-accumulates without any."""
    importance: AnyImportance = "l1"
    """How channels are judged: l1, outgoing_l1, geometric_median, bn_scale, or by activations that are zero on training
    images (activations)."""
    step: Annotated[int | None, only_where(sensitivity=ABSENT)] = None
    """Numbers of channels are multiples of it; by default what this device likes, measured."""
    sensitivity: Path | None = None
    """SVG for the accuracy with each layer pruned alone; nothing else is done then."""
    recipe: Annotated[str, only_where(run=ABSENT)] = "digits"
    """Recipe that says which images."""
    run: Path | None = None
    """Folder of a supernet's training run that says so instead."""
    space: str | None = None
    """The space of the run and of the subnet, said again if it is code of your own: path/to/file.py:function."""
    input_size: int | None = None
    """Pixels a side of a timm model's images; by default the model's own."""
    images: int = 256
    """Training images for BatchNorm and for activations, at most; of held-out ones, those that sensitivity is judged
    by."""
    threads: Annotated[int, only_where(sensitivity=ABSENT)] = 1
    """Threads of ONNX Runtime where milliseconds are measured."""
    workers: int | None = 0
    """Processes that load images; 0 loads in this one, None is as many as seem right."""
    seed: int = 0
    """Seed of the training run, which the split into parts follows from."""
    onnx: Annotated[bool, only_where(sensitivity=ABSENT)] = True
    """Write model.onnx too."""


def main() -> None:
    job = said_job(Arguments)
    default = Arguments(job.data, tyro.MISSING, seed=job.train.seed, workers=job.execution.workers)
    prune(parse_flags(Arguments, __doc__, default=default, omit_prefixes=True))


def prune(arguments: Arguments) -> None:
    """What the command does."""
    limits = limits_of(arguments.limits)
    if arguments.images < 1 or (arguments.step is not None and arguments.step < 1):
        raise ValueError(f"images and step are at least 1, not {arguments.images} and {arguments.step}")
    if (arguments.output is None) == (arguments.sensitivity is None):
        raise ValueError("say one of --output, a folder for the pruned subnet, and --sensitivity, a file for a picture")
    if arguments.output is not None and (arguments.output / "config.json").exists():
        raise ValueError(f"{arguments.output} holds a subnet already; name another folder")
    data = open_data(arguments.data, arguments.seed, arguments.workers)
    subnet = opened(arguments.subnet, data, arguments.input_size, arguments.space)
    if not (isinstance(data, ImageData) and isinstance(subnet.config.family().task, Classification)):
        raise ValueError("channels are judged on images with classes, and these data are something else")
    data = dataclasses.replace(data, config=subnet.config.preparing(data.config))
    if arguments.sensitivity is not None:
        return draw_sensitivity(arguments, subnet, data)
    device = this_device("onnxruntime", threads=arguments.threads)
    step = arguments.step or liked_step(device)
    size = subnet.config.input_size[-1]
    batches = [images for images, _ in data.calibration_batches(size, arguments.images, arguments.seed)]
    channels = elastic_channels(subnet)
    scores = comparable_scores(subnet.model, channels, arguments.importance, [(images,) for images in batches])
    costs = costs_of(subnet, device)
    limits = limits or {"macs": PART_OF_MACS * subnet.config.facts["macs"]}

    def is_admissible(sizes: Sizes) -> bool:
        model = smaller(subnet.model, channels, sizes)
        return all(costs[name](model) <= limit for name, limit in limits.items())

    why = ", ".join(f"{name} <= {limit:g}" for name, limit in limits.items())
    sizes = sizes_within(scores, step, is_admissible, why)
    found = pruned(subnet, channels, sizes, scores)
    calibrate(found.model, batches)
    write(arguments, subnet, found, {"step": step, "limits": limits, "channels": sizes}, device, data)


def write(
    arguments: Arguments, subnet: Subnet, found: Subnet, how: dict[str, object], device: Device, data: ImageData
) -> None:
    """Judge and time both networks, say it, and write the pruned one."""
    example, size = found.config.example(), found.config.input_size[-1]
    turns = turns_ms([prepare(own.model, device, example) for own in (subnet, found)], TURNS)
    ratio = time_ratio(turns[:, 1], turns[:, 0])
    rows = {}
    for index, (name, own) in enumerate({"before": subnet, "pruned": found}.items()):
        right = accuracy(own.model, data.evaluation_batches(data.test, size))
        rows[name] = {"accuracy": right, "milliseconds": float(np.median(turns[:, index])), **own.config.facts}
        own.config.facts["accuracy"] = right
        told = f"{right:.2%} of the test images are right, {rows[name]['milliseconds']:.3g} ms, "
        told += f"{rows[name]['macs']:,} MACs, {rows[name]['parameters']:,} parameters"
        console.print(f"{name}: {told}", highlight=False, soft_wrap=True)
    taken = f"{ratio.ratio:.3f} of the time, give or take {ratio.standard_error:.3f}: {ratio.verdict} on {device.name}"
    console.print(f"Channels in multiples of {how['step']}; {taken}.", highlight=False, soft_wrap=True)
    content = {
        "command": provenance.command(),
        "date": provenance.today(),
        "versions": provenance.versions(),
        "device": dataclasses.asdict(device),
        "importance": arguments.importance,
        **how,
        "on_test_images": rows,
        "time_ratio": {**ratio._asdict(), "verdict": ratio.verdict},
    }
    with write_folder(arguments.output, last="config.json") as folder:
        save_subnet(folder, found, onnx=arguments.onnx)
        (folder / "pruning.json").write_text(json.dumps(content, indent=2) + "\n")


def costs_of(subnet: Subnet, device: Device) -> dict[str, Callable[[nn.Module], float]]:
    """What may be limited, of a module."""
    example = subnet.config.example()

    def milliseconds(model: nn.Module) -> float:
        return float(np.median(turns_ms([prepare(model, device, example)], 10, runs=2)))

    return {
        "macs": lambda model: count_macs(model, example),
        "parameters": count_parameters,
        "milliseconds": milliseconds,
    }


def limits_of(texts: tuple[str, ...]) -> dict[str, float]:
    """Those of texts NAME=VALUE; ValueError for one that is none."""
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f"a limit is NAME=VALUE, such as macs=1e6, not {text!r}") from None
        if name not in ("macs", "parameters", "milliseconds") or math.isnan(found[name]):
            raise ValueError(f"the limits are macs, parameters and milliseconds, each of a number, not {text!r}")
    return found


def draw_sensitivity(arguments: Arguments, subnet: Subnet, data: ImageData) -> None:
    size = subnet.config.input_size[-1]
    calibrating = data.calibration_batches(size, arguments.images, arguments.seed)
    scores = comparable_scores(
        subnet.model, elastic_channels(subnet), arguments.importance, [(images,) for images, _ in calibrating]
    )
    judging = list(take(data.evaluation_batches(data.holdout, size), arguments.images))
    example = torch.zeros(1, *subnet.config.input_size)
    rows = sensitivity(subnet.model, example, lambda model: accuracy(model, judging), importance=scores)
    plot_sensitivity(arguments.sensitivity, rows)
    most = min(rows, key=lambda row: row.score)
    told = f"{most.layer} with {most.kept} channels leaves {most.score:.1%} of the held-out images right"
    console.print(f"{arguments.sensitivity}: the most sensitive, {told}.", highlight=False, soft_wrap=True)
