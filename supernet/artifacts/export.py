"""A plain module as a file for other runtimes: ONNX, a program of torch.export; and whether it agrees."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from distill.untouched import untouched
from supernet.artifacts.atomic import write_atomically
from supernet.artifacts.deployment import deployed
from supernet.calibration import Inputs, as_arguments
from supernet.errors import first_line
from supernet.imports import require
from supernet.tasks import Classification

# N images, C channels, H height, W width, K classes

OPSET = 18
CLASSIFICATION = Classification()

_logger = logging.getLogger(__name__)


class Named(Protocol):
    """What has names for the tensors that go into a network and come out of it: a task, or a subnet's configuration."""

    input_names: Sequence[str]
    output_names: Sequence[str]


def export_onnx(
    model: nn.Module,
    path: str | Path,
    example: Sequence[int] | tuple[Tensor, ...] = (3, 224, 224),
    *,
    names: Named | None = CLASSIFICATION,
    batch_size: int = 1,
    dynamic_batch: bool = False,
    dynamic_axes: Mapping[str, Mapping[int, str]] = MappingProxyType({}),
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write `model`, as `deployed`, in eval mode and with BatchNorm folded into convolutions, to `path` as ONNX of
    opset 18.

    The graph takes tensors like those of `example`, of which shapes and types alone matter, but for the batch in the
    first dimension: of `batch_size`, or any with `dynamic_batch`. By the name of a tensor, `dynamic_axes` are further
    dimensions that may be of any size, with a name, such as the length of a text, {"tokens": {1: "length"}}. A size
    [C, H, W] stands for images in float32. The names of tensors are those of `names`, a task say: `images` and
    `logits` by default, `input_0`, `output_0` and so on if None.
    The file says `metadata` of itself, which runtimes hand out by name.
    The model stays as it is; control flow that depends on sizes is fixed at those of the example.

    Torch's exporter by tracing is tried first: a tenth of a second for a small network, where the exporter through
    `torch.export` needs several. The latter takes over where tracing fails, such as in timm's EVA.
    ValueError if both fail, or if there are not as many names as tensors, ModuleNotFoundError without the extra
    `onnx`.
    """
    require("onnx")
    # a traced batch of 1 could be taken for a dimension to broadcast
    inputs = _inputs(model, example, max(batch_size, 2) if dynamic_batch else batch_size)
    model = deployed(model)
    found = _names(model, inputs, names)
    batch = {0: "batch"} if dynamic_batch else {}
    axes = {name: {**batch, **dynamic_axes.get(name, {})} for part in found for name in part}
    with write_atomically(path) as temporary:
        try:
            _export_traced(model, inputs, found, temporary, axes)
        except (RuntimeError, TypeError, ValueError) as traced:  # what tracing raises on code that it cannot follow
            _logger.info("tracing %s failed, exporting it through torch.export: %s", type(model).__name__, traced)
            try:
                _export_captured(model, inputs, found, temporary, axes)
            except ValueError as error:
                raise ValueError(f"{error}; nor by tracing: {first_line(traced)}") from error
        if metadata:
            _describe(temporary, metadata)


def export_fp16(source: str | Path, path: str | Path) -> None:
    """Write the ONNX file `source` to `path` with weights and values in half precision, of half the bytes; what goes in
    and comes out stays in float32. ModuleNotFoundError without the extra `onnx`."""
    onnx, float16 = require("onnx"), require("onnxruntime.transformers.float16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that become 0, which `agreement` shows the effect of
        model = float16.convert_float_to_float16(onnx.load(str(source)), keep_io_types=True)
    with write_atomically(path) as temporary:
        onnx.save(model, str(temporary))


def export_program(
    model: nn.Module, path: str | Path, example: Sequence[int] | tuple[Tensor, ...] = (3, 224, 224)
) -> None:
    """Write `model`, as `deployed`, to `path` by `torch.export`, with any batch size; `torch.export.load` reads it, for
    AOTInductor and ExecuTorch. It takes tensors like those of `example`, as `export_onnx` has it. The model stays as it
    is. ValueError if it cannot be exported."""
    inputs = _inputs(model, example, 2)  # a batch of 1 would be taken for a constant
    batch = torch.export.Dim("batch")
    plain = deployed(model).to(memory_format=torch.contiguous_format)  # `save` warns of weights in another one
    try:
        program = torch.export.export(plain, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
    except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
        raise ValueError(f"{type(model).__name__} cannot be exported by torch.export: {first_line(error)}") from error
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        torch.export.save(program, file)


class Agreement(NamedTuple):
    """How far a file gives the output of the model that it was made of."""

    top1: float | None  # part of the examples that both give the same class, of an output that may be logits [N, K]
    difference: float  # the largest of any two numbers


def agreement(model: nn.Module, run: Callable[..., Any], inputs: Inputs) -> Agreement:
    """How `run`, a function of images [N, C, H, W] to logits [N, K] say, agrees with `model` in eval mode on `inputs`,
    these images or a tuple of several inputs."""
    with torch.inference_mode():
        expected, found = (tree_leaves(untouched(f, *as_arguments(inputs))) for f in (model.eval(), run))
    top1 = None
    if len(expected) == 1 and expected[0].dim() == 2:
        top1 = (expected[0].argmax(dim=1) == found[0].argmax(dim=1)).double().mean().item()
    return Agreement(top1, max((a - b).abs().max().item() for a, b in zip(expected, found, strict=True)))


def onnx_runner(path: str | Path) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    """The network in an ONNX file as a function of its inputs, such as images [N, C, H, W], to its output, such as
    logits [N, K], or a tuple of several, on the CPU."""
    session = require("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [own.name for own in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = session.run(None, dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True)))
        outputs = tuple(map(torch.from_numpy, found))
        return outputs if len(outputs) > 1 else outputs[0]

    return run


def program_runner(path: str | Path) -> Callable[..., Any]:
    """The network in a file of `export_program`, likewise."""
    return torch.export.load(path).module()


def _describe(path: Path, metadata: Mapping[str, str]) -> None:
    onnx = require("onnx")
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, str(path))


class _Names(NamedTuple):
    inputs: list[str]
    outputs: list[str]


def _inputs(model: nn.Module, example: Sequence[int] | tuple[Tensor, ...], batch_size: int) -> tuple[Tensor, ...]:
    """Zeros like `example`, on the model's device."""
    sizes = [tuple(tensor.shape[1:]) for tensor in example] if isinstance(example[0], Tensor) else [tuple(example)]
    if min(batch_size, *itertools.chain(*sizes)) < 1:
        raise ValueError(f"sizes are at least 1, not {', '.join(map(str, sizes))} in a batch of {batch_size}")
    types = [tensor.dtype for tensor in example] if isinstance(example[0], Tensor) else [torch.float32]
    device = next(model.parameters(), torch.empty(0)).device
    return tuple(torch.zeros(batch_size, *size, dtype=dtype, device=device) for size, dtype in zip(sizes, types))


def _names(model: nn.Module, inputs: tuple[Tensor, ...], names: Named | None) -> _Names:
    """Those of `names`, or numbers; ValueError unless there is one for each tensor."""
    with torch.no_grad():
        outputs = tree_leaves(untouched(model, *inputs))
    if names is None:
        return _Names(*([f"{what}_{i}" for i in range(len(t))] for what, t in (("input", inputs), ("output", outputs))))
    for what, tensors, given in (("inputs", inputs, names.input_names), ("outputs", outputs, names.output_names)):
        if len(tensors) != len(given):
            raise ValueError(f"there are {len(tensors)} {what}, and the task names {len(given)}: {', '.join(given)}")
    return _Names(list(names.input_names), list(names.output_names))


def _export_traced(
    model: nn.Module, inputs: tuple[Tensor, ...], names: _Names, path: Path, axes: Mapping[str, Mapping[int, str]]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that the other exporter is the default now
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # that sizes become constants, as documented above
        torch.onnx.export(
            model,
            inputs,
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=names.inputs,
            output_names=names.outputs,
            dynamic_axes={name: dict(own) for name, own in axes.items() if own},
        )


def _export_captured(
    model: nn.Module, inputs: tuple[Tensor, ...], names: _Names, path: Path, axes: Mapping[str, Mapping[int, str]]
) -> None:
    require("onnxscript")
    dims = {name: torch.export.Dim(name) for own in axes.values() for name in own.values()}
    shapes = tuple({dim: dims[name] for dim, name in axes[own].items()} for own in names.inputs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about its own internals
            torch.onnx.export(
                model,
                inputs,
                str(path),
                dynamo=True,
                verbose=False,
                external_data=False,
                opset_version=OPSET,
                input_names=names.inputs,
                output_names=names.outputs,
                dynamic_shapes=shapes if dims else None,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = first_line(error.__cause__ or error)
        raise ValueError(f"{type(model).__name__} cannot be exported to ONNX: {reason}") from error
