"""What runs a network and tells how long that took, behind one interface.

A runtime is a function from a plain module, a device and the module's inputs, a tuple of tensors, to a `Timer`. Each
imports what it needs when it is called, and says so when that is missing.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from compress.quantisation import export_int8, quantise
from distill.untouched import untouched
from predictors.device import ON_GPU, Device
from supernet.artifacts.converters import CONVERTERS, convert
from supernet.artifacts.deployment import deployed
from supernet.artifacts.export import export_onnx
from supernet.artifacts.tensorrt_engine import Engine
from supernet.imports import require
from supernet.training.execution import tf32

# B batch, C channels, H height, W width

Example = Sequence[int] | tuple[Tensor, ...]  # the size [C, H, W] of an image, or tensors like the inputs
Timer = Callable[[int], np.ndarray]  # runs so many times in a row; milliseconds of each run
Runtime = Callable[[nn.Module, Device, tuple[Tensor, ...]], Timer]


def prepare(model: nn.Module, device: Device, example: Example) -> Timer:
    """A timer of `model`, as `supernet.artifacts.deployment.deployed`, on inputs like `example`: the size [C, H, W] of
    an image, or the tensors of one example, of which shapes and types alone matter (`Family.example` gives them).

    A batch has the device's size. Floating point values are random between 0 and 1, others 0.

    ValueError if the runtime does not suit (see `check`) or the model does not convert.
    """
    check(device)
    return RUNTIMES[device.runtime](deployed(model), device, random_inputs(example, device.batch_size))


def check(device: Device) -> None:
    """ValueError if the device's runtime is unknown, lacks its precision or the hardware; ModuleNotFoundError, with the
    extra to install, if the runtime is not there."""
    if device.runtime not in RUNTIMES:
        raise ValueError(f"no runtime {device.runtime!r}; there are {', '.join(RUNTIMES)}")
    precisions = PRECISIONS.get(device.runtime, ("fp32",))
    if device.precision not in precisions:
        raise ValueError(f"{device.runtime} measures {' and '.join(precisions)} here, not {device.precision!r}")
    if device.runtime in ON_GPU and not torch.cuda.is_available():
        raise ValueError(f"the runtime {device.runtime} needs an NVIDIA GPU, and torch finds none here")
    for module in MODULES.get(device.runtime, ()):
        require(module)


def _torch(model: nn.Module, device: Device, inputs: tuple[Tensor, ...]) -> Timer:
    return _on_threads(_one_run(model, model, inputs), device)


def _torch_compile(model: nn.Module, device: Device, inputs: tuple[Tensor, ...]) -> Timer:
    # modules of one class share their code, which is compiled eight times at most; an exported graph has its own
    graph = torch.export.export(model, inputs).module()
    return _on_threads(_one_run(graph, torch.compile(graph, dynamic=False), inputs), device)


def _on_threads(run_once: Callable[[], object], device: Device) -> Timer:
    @torch.inference_mode()
    def run(count: int) -> np.ndarray:
        before = torch.get_num_threads()
        torch.set_num_threads(device.threads)
        try:
            return _time(run_once, count)
        finally:
            torch.set_num_threads(before)

    return run


def _onnxruntime(model: nn.Module, device: Device, inputs: tuple[Tensor, ...]) -> Timer:
    with tempfile.TemporaryDirectory() as folder:
        return onnx_timer(write_onnx(model, device, inputs, Path(folder)), device, inputs)


def onnx_timer(path: Path, device: Device, inputs: tuple[Tensor, ...]) -> Timer:
    """A timer of the network in an ONNX file on `inputs`, by ONNX Runtime on the device's threads of this CPU."""
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = device.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    feed = {own.name: tensor.numpy() for own, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return lambda count: _time(lambda: session.run(None, feed), count)


def _openvino(model: nn.Module, device: Device, inputs: tuple[Tensor, ...]) -> Timer:
    openvino = require("openvino")
    with tempfile.TemporaryDirectory() as folder:
        path = write_onnx(model, device, inputs, Path(folder))
        settings = {"INFERENCE_NUM_THREADS": device.threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    tensors = [openvino.Tensor(tensor.numpy()) for tensor in inputs]
    return lambda count: _time(lambda: request.infer(tensors), count)


def _converted(name: str, model: nn.Module, device: Device, inputs: tuple[Tensor, ...]) -> Timer:
    with tempfile.TemporaryDirectory() as folder:
        convert(model, name, Path(folder), inputs)
        converter = CONVERTERS[name]
        run_once = converter.runner(Path(folder) / converter.file, device.threads)
        run_once(*inputs)  # which reads what it needs of the file
    return lambda count: _time(lambda: run_once(*inputs), count)


def _tensorrt(model: nn.Module, device: Device, inputs: tuple[Tensor, ...]) -> Timer:
    with tempfile.TemporaryDirectory() as folder:
        convert(model, "tensorrt", Path(folder), inputs)
        engine = Engine(Path(folder) / CONVERTERS["tensorrt"].file)
    engine.fill(inputs)

    def run(count: int) -> np.ndarray:
        with torch.cuda.stream(engine.stream):
            return _time_cuda(engine.enqueue, count)

    return run


def _cuda(model: nn.Module, device: Device, inputs: tuple[Tensor, ...]) -> Timer:
    model = model.cuda()
    run_once = _one_run(model, model, tuple(tensor.cuda() for tensor in inputs))

    @torch.inference_mode()
    def run(count: int) -> np.ndarray:
        with tf32(device.precision == "tf32"):
            return _time_cuda(run_once, count)

    return run


def _cuda_graph(model: nn.Module, device: Device, inputs: tuple[Tensor, ...]) -> Timer:
    model = model.cuda()
    run_once = _one_run(model, model, tuple(tensor.cuda() for tensor in inputs))
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), tf32(device.precision == "tf32"):
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):  # what is set up lazily must be there before the capture
            for _ in range(3):
                run_once()
        torch.cuda.current_stream().wait_stream(side_stream)
        with torch.cuda.graph(graph):
            run_once()
    kept = graph, run_once  # the graph reads the weights and the inputs, which must live as long as it does

    return lambda count: _time_cuda(kept[0].replay, count)


RUNTIMES: dict[str, Runtime] = {
    "torch": _torch,
    "torch_compile": _torch_compile,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "executorch": partial(_converted, "executorch"),
    "litert": partial(_converted, "litert"),
    "tensorrt": _tensorrt,
    "cuda": _cuda,
    "cuda_graph": _cuda_graph,
}
PRECISIONS = {"onnxruntime": ("fp32", "int8"), "cuda": ("fp32", "tf32"), "cuda_graph": ("fp32", "tf32")}
MODULES = {"onnxruntime": ("onnx", "onnxruntime")} | {name: own.modules for name, own in CONVERTERS.items()}


def write_onnx(model: nn.Module, device: Device, inputs: tuple[Tensor, ...], folder: Path) -> Path:
    """The file in `folder` that a runtime of ONNX loads: `model` in the precision of `device`."""
    path = folder / "model.onnx"
    if device.precision == "int8":
        network = quantise(model, [inputs], "extremes", rounding="nearest")
        export_int8(network, path, inputs, names=None, batch_size=device.batch_size)
    else:
        export_onnx(model, path, inputs, names=None, batch_size=device.batch_size)
    return path


def random_inputs(example: Example, batch_size: int) -> tuple[Tensor, ...]:
    """Tensors like `example`, as `prepare` has it, in a batch of so many examples; always the same."""
    if not isinstance(example[0], Tensor):
        example = (torch.empty(1, *example, device="meta"),)
    draw = torch.Generator().manual_seed(0)

    def like(tensor: Tensor) -> Tensor:
        shape = (batch_size, *tensor.shape[1:])
        if tensor.is_floating_point():
            return torch.rand(shape, dtype=tensor.dtype, generator=draw)
        return torch.zeros(shape, dtype=tensor.dtype)

    return tuple(map(like, example))


def _one_run(model: nn.Module, run: Callable[..., object], inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """What is timed: `run`, which computes what `model` does, on `inputs`.

    A model that works on its inputs in place would make other numbers of them in every run, up to infinity. It alone
    gets copies each time, as whoever keeps the inputs has to make them.
    """
    tried = tuple(tensor.clone() for tensor in inputs)
    before = [tensor._version for tensor in tried]
    with torch.inference_mode():
        model(*tried)
    is_kept = [tensor._version for tensor in tried] == before
    return (lambda: run(*inputs)) if is_kept else (lambda: untouched(run, *inputs))


def _time(run: Callable[[], object], count: int) -> np.ndarray:
    moments = np.empty(count + 1)
    moments[0] = time.perf_counter()
    for i in range(count):
        run()
        moments[i + 1] = time.perf_counter()
    return np.diff(moments) * 1e3


def _time_cuda(run: Callable[[], object], count: int) -> np.ndarray:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return np.array([start.elapsed_time(end) for start, end in itertools.pairwise(events)])
