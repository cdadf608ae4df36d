"""Put a subnet into int8, and give layers back their float where it is not good enough.

    supernet quantise --subnet subnets/mine --run runs/mine --output subnets/mine8 --limits accuracy_drop=0.5
    supernet quantise --subnet subnets/mine --run runs/mine --output subnets/mine8 --limits stored_bytes=1.5e6
    supernet quantise --subnet mobilenetv3_large_100 --recipe alphanet --root imagenet/ --output models/mnv3_int8

Training images calibrate the ranges of activations and how weights are rounded; held-out images choose which layers
are given back, at the least bytes and bit operations that keep the drop of accuracy, in points, within its limit. With
a limit on stored_bytes alone that is until the drop is within its standard error, or as far as the bytes allow. Test
images, on which nothing is chosen, give the drop that is told, with its standard error. Writes the folder as
`supernet extract` does, with the network in model.int8.onnx, how each layer is quantised in quantisation.json, and the
measured milliseconds of float, int8 and what was chosen. Seconds for digits; layers are looked at one by one only if
int8 is not good enough.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from compress.quantisation import Quantised, export_int8, planned
from compress.quantisation.limits import Candidate, Candidates, Limits, drop
from compress.quantisation.ranges import CALIBRATION_IMAGES
from compress.sensitivity import Sensitivity, logits
from predictors import Device, this_device
from predictors.measuring.runtimes import onnx_timer
from supernet.artifacts import provenance
from supernet.artifacts.atomic import write_folder, write_json
from supernet.artifacts.export import onnx_runner
from supernet.artifacts.runs import open_data
from supernet.artifacts.subnet import Subnet, save_subnet
from supernet.conditions import ABSENT, GIVEN, only_where, unread
from supernet.imports import require
from supernet.tasks import Classification
from supernet.training.data import DataConfig, ImageData
from supernet.training.data.batch import take
from supernet.training.data.config import TRAINING
from supernet_cli.command_line import console
from supernet_cli.evaluate import medians_ms, opened
from supernet_cli.extract import AGREEMENT
from supernet_cli.flags import parse_flags
from supernet_cli.model_training import said_job

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    data: Annotated[DataConfig, tyro.conf.arg(name=""), unread(*TRAINING)]
    subnet: str
    """Folder of a saved subnet, NAME=FILE or NAME of a timm model."""
    output: Path
    """Folder for the quantised subnet."""
    limits: tuple[str, ...] = ()
    """What it keeps within: accuracy_drop=POINTS, stored_bytes=BYTES, milliseconds=MS; none for all of it in int8."""
    recipe: Annotated[str, only_where(run=ABSENT)] = "digits"
    """Recipe that says which images."""
    run: Path | None = None
    """Folder of a supernet's training run that says so instead."""
    space: str | None = None
    """The space of the subnet and of the run, said again if it is code of your own: path/to/file.py:function."""
    input_size: int | None = None
    """Pixels a side of a timm model's images; by default the model's own."""
    calibration_images: int = CALIBRATION_IMAGES
    """Training images that the ranges of activations are from, and the rounding of weights from the first of them."""
    choosing_images: Annotated[int, only_where(limits=GIVEN)] = 2000
    """Held-out images that layers are chosen on, at most."""
    ranking_images: Annotated[int, only_where(limits=GIVEN)] = 256
    """Those of them, at most, that the divergence of each layer is measured on."""
    reduce_range: bool | None = None
    """Weights of 7 bits, for x86 processors without VNNI; by default if this machine has one."""
    threads: int = 1
    """Threads of ONNX Runtime where milliseconds are measured."""
    workers: int | None = 0
    """Processes that load images; 0 loads in this one, None is as many as seem right."""
    seed: int = 0
    """Seed of the training run, which the split into parts follows from."""


def main() -> None:
    job = said_job(Arguments)
    default = Arguments(job.data, tyro.MISSING, tyro.MISSING, seed=job.train.seed, workers=job.execution.workers)
    quantise(parse_flags(Arguments, __doc__, default=default, omit_prefixes=True))


def quantise(arguments: Arguments) -> None:
    """What the command does."""
    limits = Limits.of(arguments.limits)
    require("onnxruntime")
    for name in ("calibration_images", "choosing_images", "ranking_images"):
        if (images := getattr(arguments, name)) < 1:
            raise ValueError(f"{name} are at least 1, not {images}")
    if (arguments.output / "config.json").exists():
        raise ValueError(f"{arguments.output} holds a subnet already; name another folder")
    data = open_data(arguments.data, arguments.seed, arguments.workers)
    subnet = opened(arguments.subnet, data, arguments.input_size, arguments.space)
    if not (isinstance(data, ImageData) and isinstance(subnet.config.family().task, Classification)):
        raise ValueError("int8 is judged on images with classes, and these data are something else")
    data = dataclasses.replace(data, config=subnet.config.preparing(data.config))
    quantise_within(limits, arguments, subnet, data)


def quantise_within(limits: Limits, arguments: Arguments, subnet: Subnet, data: ImageData) -> None:
    """Quantise, choose, judge, measure, say and write."""
    size = subnet.config.input_size[-1]
    calibrating = data.calibration_batches(size, arguments.calibration_images, arguments.seed)
    choosing = list(take(data.evaluation_batches(data.holdout, size), arguments.choosing_images))
    images = [images for images, _ in calibrating]
    model, plan = planned(subnet.model, images, reduce_range=arguments.reduce_range)
    device = this_device("onnxruntime", threads=arguments.threads)

    def write(network: Quantised, path: Path) -> None:
        config = subnet.config
        export_int8(network, path, config.example(), names=config, dynamic_batch=True, metadata=config.metadata())

    with write_folder(arguments.output, last="config.json") as folder, tempfile.TemporaryDirectory() as scratch:
        ranking = list(take(choosing, arguments.ranking_images))
        candidates = Candidates(model, plan, choosing, write, Path(scratch), ranking)
        int8 = candidates({})
        image = (choosing[0][0][:1],)
        chosen, found = candidates.within(limits, lambda path: latencies_ms([path], device, image)[0])
        save_subnet(folder, subnet)
        files = {"float": folder / "model.onnx", "int8": int8.path}
        if chosen is not int8:
            files["mixed"] = chosen.path
        measured = latencies_ms(list(files.values()), device, image)
        testing = list(data.evaluation_batches(data.test, size))
        expected = logits(onnx_runner(files["float"]), testing)
        rows = {}
        for (name, path), ms in zip(files.items(), measured):
            told = drop(expected, logits(onnx_runner(path), testing), testing)
            rows[name] = {**told._asdict(), "bytes": path.stat().st_size, "milliseconds": ms}
        (folder / "model.int8.onnx").write_bytes(chosen.path.read_bytes())
        alike = rows["int8" if chosen is int8 else "mixed"]["told_alike"]
        if alike < AGREEMENT:
            logger.warning(
                "model.int8.onnx gives the same class for %.0f %% of the images only: supernet finetune --precision "
                "int8 trains for it",
                100 * alike,
            )
        say(chosen, found, rows, f"{data.count(data.test)} test images, {device.name}")
        content = content_of(chosen, found, rows, arguments, device)
        write_json(folder / "quantisation.json", content)
    console.print(f"The network is in {arguments.output}/model.int8.onnx.", highlight=False, soft_wrap=True)


def latencies_ms(
    paths: Sequence[Path], device: Device, inputs: tuple[torch.Tensor, ...], rounds: int = 30
) -> list[float]:
    """Median milliseconds of each file over `rounds` turns, each turn after a run to warm up."""
    return medians_ms([onnx_timer(path, device, inputs) for path in paths], rounds, runs=1)


def say(chosen: Candidate, found: Sequence[Sensitivity], rows: dict[str, dict[str, float]], where: str) -> None:
    divergences = {own.layer: own.divergence for own in found if own.precision == "int8"}
    for layer, precision in chosen.network.quantisation.precisions.items():
        what = "float" if precision == "float" else "activations in float, weights in 8 bits"
        told = f"{layer}: {what}; alone in int8 it diverges by {divergences[layer]:.2g} nats"
        console.print(told, highlight=False, soft_wrap=True)
    console.print(f"On {where}:", highlight=False, soft_wrap=True)
    for name, own in rows.items():
        costs = f"{own['bytes']:,} bytes, {own['milliseconds']:.3g} ms"
        lost = f"{own['points']:.2f} points fewer right, give or take {own['standard_error']:.2g}"
        told = "" if name == "float" else f", {lost}, the same class for {own['told_alike']:.1%}"
        console.print(f"{name}: {costs}{told}", highlight=False, soft_wrap=True)


def content_of(
    chosen: Candidate,
    found: Sequence[Sensitivity],
    rows: dict[str, dict[str, float]],
    arguments: Arguments,
    device: Device,
) -> dict[str, object]:
    plan = chosen.network.quantisation
    return {
        "command": provenance.command(),
        "date": provenance.today(),
        "versions": provenance.versions(),
        "device": dataclasses.asdict(device),
        "limits": list(arguments.limits),
        "weight_bits": plan.weight_bits,
        "precisions": dict(plan.precisions),
        "ranges": plan.ranges,
        "drop_on_choosing_images": chosen.drop._asdict(),
        "on_test_images": rows,
        "sensitivities": [dataclasses.asdict(own) for own in found],
    }
