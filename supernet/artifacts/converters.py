"""A plain module as a file for runtimes that do not read ONNX: OpenVINO IR, ExecuTorch, LiteRT and TensorRT."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from supernet.artifacts.atomic import write_atomically
from supernet.artifacts.deployment import deployed
from supernet.artifacts.export import Agreement, agreement, export_onnx
from supernet.artifacts.tensorrt_engine import run_engine, write_engine
from supernet.errors import first_line
from supernet.imports import require

# N examples

Inputs = tuple[Tensor, ...]
RELATIVE = 1e-3  # of the largest output, that a file's outputs may differ by from the module's


class Converter(NamedTuple):
    """A format of files, in fp32."""

    file: str  # that is written; OpenVINO's has its weights beside it, in a file ending in .bin
    modules: tuple[str, ...]  # that writing it and running it take
    write: Callable[[nn.Module, Path, Inputs], None]  # a deployed module, for inputs of just these sizes
    runner: Callable[[Path, int], Callable[..., Any]]  # what computes the module's outputs, on so many threads


def convert(model: nn.Module, name: str, folder: Path, inputs: Inputs) -> Agreement:
    """Write `model`, as `deployed`, to `folder` in the format `name` of `CONVERTERS`, for a batch as large as that of
    `inputs`, and say how the file agrees with it on these.

    ValueError, and no file, if the model cannot be converted, or if outputs differ by more than `RELATIVE` of the
    largest; ModuleNotFoundError, naming the extra, if a package is missing.
    """
    if name not in CONVERTERS:
        raise ValueError(f"there is no format {name!r}; there are {', '.join(CONVERTERS)}")
    converter = CONVERTERS[name]
    for module in converter.modules:
        require(module)
    with tempfile.TemporaryDirectory() as temporary:
        written = Path(temporary) / converter.file
        try:
            with _quiet():
                converter.write(deployed(model), written, inputs)
        except Exception as error:  # each converter raises its own kinds, and some raise plain Exception
            raise ValueError(f"{type(model).__name__} cannot be converted to {name}: {first_line(error)}") from error
        found = agreement(model, converter.runner(written, 1), inputs)
        with torch.inference_mode():
            largest = max(output.abs().max().item() for output in tree_leaves(model(*inputs)))
        if not found.difference <= RELATIVE * largest:
            raise ValueError(
                f"{type(model).__name__} in {name} gives outputs that differ by {found.difference:.1e}, where the "
                f"largest is {largest:.1e}: it is not written"
            )
        for path in sorted(Path(temporary).iterdir()):
            with write_atomically(folder / path.name) as target:
                target.write_bytes(path.read_bytes())
    return found


def _write_openvino(model: nn.Module, path: Path, inputs: Inputs) -> None:
    openvino = require("openvino")
    with tempfile.TemporaryDirectory() as folder:
        onnx = Path(folder) / "model.onnx"
        export_onnx(model, onnx, inputs, names=None, batch_size=len(inputs[0]))
        openvino.save_model(openvino.convert_model(onnx), path, compress_to_fp16=False)


def _run_openvino(path: Path, threads: int) -> Callable[..., Any]:
    openvino = require("openvino")
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()

    def run(*inputs: Tensor) -> Any:
        return _tree([torch.from_numpy(own.copy()) for own in request.infer([own.numpy() for own in inputs]).values()])

    return run


def _write_executorch(model: nn.Module, path: Path, inputs: Inputs) -> None:
    lower = require("executorch.exir").to_edge_transform_and_lower
    partitioner = require("executorch.backends.xnnpack.partition.xnnpack_partitioner").XnnpackPartitioner
    program = torch.export.export(model.to(memory_format=torch.contiguous_format), inputs)
    path.write_bytes(lower(program, partitioner=[partitioner()]).to_executorch().buffer)


def _run_executorch(path: Path, threads: int) -> Callable[..., Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this interface is experimental
        require("executorch.extension.pybindings.portable_lib")._unsafe_reset_threadpool(threads)
        program = require("executorch.runtime").Runtime.get().load_program(path)
        method = program.load_method("forward")

    def run(*inputs: Tensor) -> Any:
        return _tree([own.clone() for own in method.execute(inputs)])

    run.program = program  # type: ignore[attr-defined]  # which the method does not keep
    return run


def _write_litert(model: nn.Module, path: Path, inputs: Inputs) -> None:
    require("litert_torch").convert(model, inputs).export(str(path))


def _run_litert(path: Path, threads: int) -> Callable[..., Any]:
    interpreter = require("ai_edge_litert.interpreter").Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    signature = next(iter(interpreter.get_signature_list().values()))
    runner = interpreter.get_signature_runner()
    types = {name: own["dtype"] for name, own in runner.get_input_details().items()}  # 32 bits of integers of 64

    def run(*inputs: Tensor) -> Any:
        named = zip(signature["inputs"], inputs, strict=True)
        found = runner(**{name: own.numpy().astype(types[name], copy=False) for name, own in named})
        return _tree([torch.from_numpy(found[name]) for name in signature["outputs"]])

    return run


CONVERTERS = {
    "openvino": Converter("model.xml", ("onnx", "openvino"), _write_openvino, _run_openvino),
    "executorch": Converter("model.pte", ("executorch",), _write_executorch, _run_executorch),
    "litert": Converter("model.tflite", ("litert_torch", "ai_edge_litert"), _write_litert, _run_litert),
    "tensorrt": Converter("model.engine", ("onnx", "tensorrt"), write_engine, run_engine),
}


def _tree(outputs: list[Tensor]) -> Any:
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what converters print and log of each of their steps."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
