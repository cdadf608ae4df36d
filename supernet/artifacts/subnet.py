"""An extracted subnet as a directory: a plain module that loads again without the supernet.

config.json         the space and the architecture, what goes in and comes out, of images with classes these and how
                    they are prepared, what is known of it
model.safetensors   weights, under the names of the plain module; tied ones once, the other names in the metadata
model.onnx          the same network for other runtimes, BatchNorm folded into the convolutions; of images with classes
                    its metadata say these and how images are prepared, each as JSON
model.int8.onnx     that in int8, calibrated on examples (compress.quantisation.export_int8)
model.pt2           the same network as a program of torch.export (export_subnet)
tokenizer.json      of texts, and what else there is in `supernet.training.data.Data.files`

Nothing outside of the directory is needed, and it may be moved. Of a space that is code of one's own it has the name,
and the SHA-256 of its file: that code is said again by whoever loads it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import nn

from supernet.artifacts.atomic import write_atomically, write_json
from supernet.artifacts.export import (
    Agreement,
    agreement,
    export_onnx,
    export_program,
    onnx_runner,
    program_runner,
)
from supernet.artifacts.runs import Run
from supernet.artifacts.subnet_config import Input, SubnetConfig, read_subnet_config
from supernet.artifacts.timm_folder import timm_config
from supernet.artifacts.weights import load_weights, read_safetensors
from supernet.calibration import Inputs
from supernet.costs import count_macs, count_parameters
from supernet.evaluation import CALIBRATION_BYTES, calibrated
from supernet.families.named import SPACES
from supernet.families.timm_models import TimmModel, self_contained, timm_model
from supernet.refitting import refitted
from supernet.space import Arch
from supernet.training.data import DataConfig
from supernet.training.data.batch import on
from supernet.views import tie_names, tied_names

logger = logging.getLogger(__name__)


class Subnet(NamedTuple):
    model: nn.Module  # in eval mode
    config: SubnetConfig


def take_out(
    run: Run,
    arch: Mapping[str, Any],
    calibration_images: int | None = None,
    calibration_bytes: int = CALIBRATION_BYTES,
    refit_images: int | None = None,
) -> Subnet:
    """The subnet `arch` of a finished run, its BatchNorm recalibrated on training examples.

    `calibration_images` is their number, by default that of the run's settings, and `calibration_bytes` what their
    activations may take at once (`supernet.evaluation.calibrated`). With `refit_images`, as many training examples are
    what its weights are refitted on instead (`supernet.refitting.refitted`). ValueError if `arch` is not of the run's
    space.
    """
    arch = run.net.space.validate(arch)
    resolution = run.family.resolution(arch)
    count = run.job.train.images_to_calibrate(run.family.num_classes)
    if calibration_images is not None:
        count = calibration_images
    if count < 1:
        raise ValueError(f"BatchNorm is recalibrated on at least 1 example, not {count}")
    if refit_images is not None and refit_images < 1:
        raise ValueError(f"weights are refitted on at least 1 example, not {refit_images}")
    if calibration_bytes < 1:
        raise ValueError(f"calibration_bytes is at least 1, not {calibration_bytes}")
    batches = run.data.calibration_batches(resolution, refit_images or count, run.job.train.seed)
    config = SubnetConfig.of(run.job.space, run.job.space_options, arch, run.data)
    device = next(run.net.parameters()).device
    inputs = (run.family.task.inputs(on(device, batch), arch) for batch in batches)
    adapted = refitted if refit_images else calibrated
    model = adapted(run.net, arch, inputs, calibration_bytes)
    return Subnet(model.to("cpu", memory_format=torch.contiguous_format), config)


def save_subnet(directory: Path, subnet: Subnet, *, onnx: bool = True) -> None:
    """Write `subnet` to `directory`; ValueError if it holds a subnet already.

    `onnx` writes model.onnx too, with any batch size, which takes the extra `onnx`. The configuration comes last, so
    that a directory with one is complete; where timm can build the module (`timm_folder`), it says what timm reads.
    """
    model, config = subnet
    if (directory / "config.json").exists():
        raise ValueError(f"{directory} holds a subnet already; name another folder")
    ties = tied_names(model.state_dict(keep_vars=True))
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in ties}
    stored = safetensors.torch.save(weights, ties or None)
    config = dataclasses.replace(config, weights_sha256=hashlib.sha256(stored).hexdigest())
    with write_atomically(directory / "model.safetensors") as temporary:
        temporary.write_bytes(stored)
    if onnx:
        export_onnx(
            model,
            directory / "model.onnx",
            config.example(),
            names=config,
            dynamic_batch=True,
            metadata=config.metadata(),
        )
    timms = timm_config(model, config.prepared, config.classes) if config.prepared and not ties else None
    write_json(directory / "config.json", {**config.content(), **(timms or {})})


def load_subnet(
    directory: str | Path, *, space: str | None = None, build: Callable[[Arch], nn.Module] | None = None
) -> Subnet:
    """The subnet in `directory` as a plain module in eval mode; ValueError, naming the file, if it cannot be read.

    If its space is code of one's own, which is not imported because a file names it, `space` says it again, or `build`
    is the function from an architecture to the module.
    """
    directory = Path(directory)
    model, config = as_plain_module(read_subnet_config(directory), directory, space, build)
    path = directory / "model.safetensors"
    weights, ties = read_safetensors(path, config.weights_sha256)
    load_weights(model, weights, str(path))
    return Subnet(tie_names(model, ties).eval(), dataclasses.replace(config, weights_sha256=None))


def as_plain_module(
    config: SubnetConfig, source: Path, space: str | None, build: Callable[[Arch], nn.Module] | None
) -> Subnet:
    """The module that `config`, found in `source`, says, with fresh weights, and the configuration with its space said
    again, as `load_subnet` takes `space` and `build`."""
    if build is not None:
        return Subnet(build(Arch(config.arch)), config)
    config = dataclasses.replace(config, space=SPACES.said_again(config.space, space, source))
    SPACES.warn_if_changed(config.space, config.space_sha256, source)
    return Subnet(config.build(), config)


def load_network(
    name: str | Path,
    data: DataConfig,
    classes: Sequence[str],
    weights: str | Path | None = None,
    input_size: int | None = None,
    *,
    space: str | None = None,
) -> Subnet:
    """The subnet saved in the folder `name`, or else the timm model of that name, in eval mode.

    `space` says the space of a subnet again, as `load_subnet` wants it.

    Of a timm model, `weights` is a file, trained for `classes` on images prepared as `data` says; without it the model
    has timm's pretrained weights, with its own classes and preparation of images. These classes are given by name: by
    the names in `classes` where they are the same classes (`timm_weights.own_classes`), or are as many and nothing says
    which they are, which the log tells; by number where nothing says and they are not as many. The model's images are
    `input_size` pixels a side, by default its own size. ValueError if it cannot be read, or if the file has no
    classifier for these classes.
    """
    if Path(name).is_dir():
        if weights is not None:
            raise ValueError(f"the subnet in {name} has weights of its own; leave out {weights}")
        return load_subnet(name, space=space)
    own = timm_model(str(name), input_size=input_size)
    options: dict[str, Any] = {"name": str(name)} | ({} if input_size is None else {"input_size": input_size})
    if weights is None:
        model = own.load()
        classes = _classes(own, classes)
        prepared = own.config
    else:
        model = timm_model(str(name), len(classes), input_size=input_size).load(weights, classifier=True)
        prepared = dataclasses.asdict(data.normalised)
    config = SubnetConfig(
        space="timm",
        space_options=self_contained("timm", json.dumps(options)),
        arch={"resolution": own.input_size},
        classes=tuple(classes),
        family_arguments={"num_classes": len(classes)},
        inputs=(Input("images", (3, own.input_size, own.input_size), "float32"),),
        output_names=("logits",),
        input_size=(3, own.input_size, own.input_size),
        mean=tuple(prepared["mean"]),
        std=tuple(prepared["std"]),
        interpolation=prepared["interpolation"],
        crop_pct=prepared["crop_pct"],
        facts={
            "macs": count_macs(model, (3, own.input_size, own.input_size)),
            "parameters": count_parameters(model),
        },
    )
    return Subnet(model.eval(), config)


def check_classes(what: str, own: Sequence[str] | None, classes: Sequence[str]) -> None:
    """ValueError unless the classes that `what` tells apart, `own`, are those of the images, in the same order."""
    if own is None:
        raise ValueError(f"{what} tells no classes of images apart")
    if tuple(own) != tuple(classes):
        raise ValueError(
            f"{what} tells other classes apart: {_few(own)} ({len(own)}), where the images have, in this order, "
            f"{_few(classes)} ({len(classes)})"
        )


def _few(classes: Sequence[str]) -> str:
    return ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")


def _classes(model: TimmModel, wanted: Sequence[str]) -> tuple[str, ...]:
    """The names of the classes that a timm model's own weights tell apart, as `load_network` gives them."""
    known = model.classes(True, wanted)
    if known:
        return known
    if known is None and model.num_classes == len(wanted):
        logger.warning(
            "nothing says which classes %s tells apart: they are taken to be those of the images", model.name
        )
        return tuple(wanted)
    return tuple(map(str, range(model.num_classes)))


def export_subnet(directory: Path, subnet: Subnet, inputs: Inputs) -> dict[str, Agreement]:
    """Write model.pt2 beside the model.onnx that `save_subnet` wrote.

    Gives, for both files, how they agree with the module on `inputs`: tensors that the module takes, such as images
    [N, C, R, R] prepared as for evaluation, or a tuple of several.
    """
    model, config = subnet
    export_program(model, directory / "model.pt2", config.example())
    runners = {
        "model.onnx": onnx_runner(directory / "model.onnx"),
        "model.pt2": program_runner(directory / "model.pt2"),
    }
    return {name: agreement(model, run, inputs) for name, run in runners.items()}


def onnx_difference(directory: Path, model: nn.Module, inputs: Inputs) -> float:
    """The largest difference between the output of `model` and that of model.onnx in `directory`, on `inputs`."""
    return agreement(model, onnx_runner(directory / "model.onnx"), inputs).difference
