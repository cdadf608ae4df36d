"""A plain module as an ONNX file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from supernet.atomic import write_atomically
from supernet.extras import require

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
    """Write `model`, in eval mode and with BatchNorm folded into convolutions, to `path` as ONNX of opset 18.

    The graph takes `images` [batch, *input_size] in float32 and gives `logits`. The batch is `batch_size`, or any with
    `dynamic_batch`. The model keeps its mode; control flow that depends on the image size is fixed at `input_size`.

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
    with write_atomically(path) as temporary:
        try:
            _export_traced(model, images, temporary, dynamic_batch)
        except (RuntimeError, TypeError, ValueError) as error:  # what tracing raises on code that it cannot follow
            _logger.info("tracing %s failed, exporting it through torch.export: %s", type(model).__name__, error)
            _export_captured(model, images, temporary, dynamic_batch)


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
    was_training = model.training
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about its own internals
            torch.onnx.export(
                model.eval(),
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
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(f"{type(model).__name__} cannot be exported to ONNX: {reason}") from error
    finally:
        model.train(was_training)
