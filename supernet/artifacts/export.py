"""A plain module as a file for other runtimes: ONNX, ONNX in int8, a program of torch.export; and whether it agrees."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.untouched import untouched
from supernet.artifacts.atomic import write_atomically
from supernet.artifacts.deployment import deployed
from supernet.errors import first_line
from supernet.optional import require

# N images, C channels, H height, W width, K classes

OPSET = 18
INPUT_NAME = "images"
OUTPUT_NAME = "logits"

_logger = logging.getLogger(__name__)


def export_onnx(
    model: nn.Module,
    path: str | Path,
    input_size: Sequence[int] = (3, 224, 224),
    *,
    batch_size: int = 1,
    dynamic_batch: bool = False,
) -> None:
    """Write `model`, as `deployed`, in eval mode and with BatchNorm folded into convolutions, to `path` as ONNX of
    opset 18.

    The graph takes `images` [batch, *input_size] in float32 and gives `logits`. The batch is `batch_size`, or any with
    `dynamic_batch`. The model stays as it is; control flow that depends on the image size is fixed at `input_size`.

    Torch's exporter by tracing is tried first: a tenth of a second for a small network, where the exporter through
    `torch.export` needs several. The latter takes over where tracing fails, such as in timm's EVA.
    ValueError if both fail, ModuleNotFoundError without the extra `onnx`.
    """
    require("onnx")
    if min(*input_size, batch_size) < 1:
        raise ValueError(f"sizes are at least 1, not {tuple(input_size)} in a batch of {batch_size}")
    parameter = next(model.parameters(), torch.empty(0))
    # a traced batch of 1 could be taken for a dimension to broadcast
    images = torch.zeros(max(batch_size, 2) if dynamic_batch else batch_size, *input_size, device=parameter.device)
    model = deployed(model)
    with write_atomically(path) as temporary:
        try:
            _export_traced(model, images, temporary, dynamic_batch)
        except (RuntimeError, TypeError, ValueError) as error:  # what tracing raises on code that it cannot follow
            _logger.info("tracing %s failed, exporting it through torch.export: %s", type(model).__name__, error)
            _export_captured(model, images, temporary, dynamic_batch)


def quantise_onnx(source: str | Path, path: str | Path, images: Tensor, batch_size: int = 32) -> None:
    """Write the network of `source`, as `export_onnx` does, to `path` in int8: weights by channel, activations static.

    The ranges of activations are their least and largest values on `images` [N, C, H, W], real ones prepared as for
    evaluation. The file is in ONNX's QDQ form, where what cannot be quantised stays in float32. Where the batch of
    `source` is not dynamic, `batch_size` is that one.
    """
    quantization = require("onnxruntime.quantization")
    batches: Iterator[Tensor] = iter(images.split(batch_size))

    class Images(quantization.CalibrationDataReader):
        def get_next(self) -> dict | None:
            return next(({INPUT_NAME: batch.numpy()} for batch in batches), None)

    logging.disable(logging.WARNING)  # of its own steps, by the root logger
    try:
        with tempfile.TemporaryDirectory() as folder, write_atomically(path) as temporary:
            prepared = str(Path(folder, "prepared.onnx"))
            pre_process = require("onnxruntime.quantization.shape_inference").quant_pre_process
            pre_process(str(source), prepared, skip_symbolic_shape=True)
            quantization.quantize_static(prepared, str(temporary), Images(), per_channel=True)
    finally:
        logging.disable(logging.NOTSET)


def export_program(model: nn.Module, path: str | Path, input_size: Sequence[int] = (3, 224, 224)) -> None:
    """Write `model`, as `deployed`, to `path` by `torch.export`, with any batch size; `torch.export.load` reads it, for
    AOTInductor and ExecuTorch. The model stays as it is. ValueError if it cannot be exported."""
    parameter = next(model.parameters(), torch.empty(0))
    images = torch.zeros(2, *input_size, device=parameter.device)  # a batch of 1 would be taken for a constant
    try:
        program = torch.export.export(deployed(model), (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
        raise ValueError(f"{type(model).__name__} cannot be exported by torch.export: {first_line(error)}") from error
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        torch.export.save(program, file)


class Agreement(NamedTuple):
    """How far a file gives the logits of the model that it was made of."""

    top1: float  # part of the images that both give the same class
    difference: float  # the largest of any two logits


def agreement(model: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor) -> Agreement:
    """How `run`, a function of images [N, C, H, W] to logits [N, K], agrees with `model` in eval mode on `images`."""
    with torch.inference_mode():
        expected, found = untouched(model.eval(), images), untouched(run, images)
    same = (expected.argmax(dim=1) == found.argmax(dim=1)).double().mean().item()
    return Agreement(same, (expected - found).abs().max().item())


def onnx_runner(path: str | Path) -> Callable[[Tensor], Tensor]:
    """The network in an ONNX file as a function of images [N, C, H, W] to logits [N, K], on the CPU."""
    session = require("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {INPUT_NAME: images.numpy()})[0])


def program_runner(path: str | Path) -> Callable[[Tensor], Tensor]:
    """The network in a file of `export_program`, likewise."""
    return torch.export.load(path).module()


def _export_traced(model: nn.Module, images: torch.Tensor, path: Path, dynamic_batch: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that the other exporter is the default now
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # that sizes become constants, as documented above
        torch.onnx.export(
            model,
            (images,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_axes={INPUT_NAME: {0: "batch"}, OUTPUT_NAME: {0: "batch"}} if dynamic_batch else None,
        )


def _export_captured(model: nn.Module, images: torch.Tensor, path: Path, dynamic_batch: bool) -> None:
    require("onnxscript")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about its own internals
            torch.onnx.export(
                model,
                (images,),
                str(path),
                dynamo=True,
                verbose=False,
                external_data=False,
                opset_version=OPSET,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic_batch else None,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = first_line(error.__cause__ or error)
        raise ValueError(f"{type(model).__name__} cannot be exported to ONNX: {reason}") from error
