"""A plain module as a TensorRT engine, for the GPU of this machine, by the interface of TensorRT 10 and later."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from supernet.artifacts.export import export_onnx
from supernet.imports import require


def write_engine(model: nn.Module, path: Path, inputs: tuple[Tensor, ...]) -> None:
    """Write `model` to `path` for inputs of just these sizes, in fp32 without TF32. An engine is of the GPU and of the
    version of TensorRT that it was built by. ValueError without a GPU, or if TensorRT refuses the network."""
    check_gpu()
    trt = require("tensorrt")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network, config = builder.create_network(0), builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    parser = trt.OnnxParser(network, logger)
    with tempfile.TemporaryDirectory() as folder:
        onnx = Path(folder) / "model.onnx"
        export_onnx(model, onnx, inputs, names=None, batch_size=len(inputs[0]))
        if not parser.parse_from_file(str(onnx)):
            raise ValueError(parser.get_error(0).desc() if parser.num_errors else "TensorRT does not say why")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ValueError("TensorRT finds no way to run it on this GPU")
    path.write_bytes(plan)


def check_gpu() -> None:
    """ValueError if there is no GPU to build an engine for."""
    if not torch.cuda.is_available():
        raise ValueError("TensorRT needs an NVIDIA GPU, and torch finds none here")


class Engine:
    """The network in a file of `write_engine`, with buffers on the GPU of what goes in and comes out."""

    def __init__(self, path: Path) -> None:
        trt = require("tensorrt")
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))  # which has to live as long as its engine
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise ValueError(f"{path} is no engine of this GPU and this version of TensorRT")
        self._context = self._engine.create_execution_context()
        self.stream = torch.cuda.Stream()
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        for name in map(self._engine.get_tensor_name, range(self._engine.num_io_tensors)):
            dtype = trt.nptype(self._engine.get_tensor_dtype(name))
            buffer = torch.zeros(tuple(self._engine.get_tensor_shape(name)), dtype=_torch_type(dtype)).cuda()
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (self.inputs if is_input else self.outputs).append(buffer)
            self._context.set_tensor_address(name, buffer.data_ptr())

    def fill(self, inputs: tuple[Tensor, ...]) -> None:
        """Put `inputs` into their buffers."""
        for buffer, own in zip(self.inputs, inputs, strict=True):
            buffer.copy_(own)
        torch.cuda.synchronize()

    def enqueue(self) -> None:
        """Begin a run on what is in the buffers, in `stream`."""
        if not self._context.execute_async_v3(self.stream.cuda_stream):
            raise ValueError("TensorRT cannot run the engine")


def run_engine(path: Path, threads: int) -> Callable[..., Any]:
    """The network in a file of `write_engine`, as a function of tensors on the CPU; threads make no difference."""
    engine = Engine(path)

    def run(*inputs: Tensor) -> Any:
        engine.fill(inputs)
        engine.enqueue()
        engine.stream.synchronize()
        outputs = [buffer.cpu().clone() for buffer in engine.outputs]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    return run


def _torch_type(dtype: Any) -> torch.dtype:
    """That of a type of NumPy's."""
    return torch.from_numpy(np.empty(0, dtype)).dtype
