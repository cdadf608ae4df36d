import contextlib
import gc
import importlib
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from predictors import Device, prepare, this_device
from predictors import device as device_module
from predictors.measuring import runtimes
from supernet import imports as extras
from supernet.families import FAMILIES
from tests import tensorrt

PLAIN = [("torch", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8")]


@pytest.mark.parametrize(
    ("runtime", "precision"), [*PLAIN, ("openvino", "fp32"), ("executorch", "fp32"), ("litert", "fp32")]
)
def test_runs_are_timed_one_by_one(runtime, precision):
    for module in runtimes.MODULES.get(runtime, ()):
        pytest.importorskip(module)
    family = FAMILIES["mobilenet_v3_micro"]()
    device = this_device(runtime, precision)
    timer = prepare(family.build(family.space.smallest), device, (3, 24, 24))
    runs_ms = timer(5)
    assert runs_ms.shape == (5,)
    assert np.all(runs_ms > 0)


class TokensAndTimes(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 4), nn.Linear(4, 2)

    def forward(self, tokens, times):
        x = self.embedding(tokens) * times[..., None]
        return self.head(x), x.mean(1)


TOKENS_AND_TIMES = torch.zeros(1, 6, dtype=torch.int64, device="meta"), torch.empty(1, 6, device="meta")


@pytest.mark.parametrize(
    ("runtime", "precision"),
    [*PLAIN, ("openvino", "fp32"), ("executorch", "fp32"), ("litert", "fp32")],
)
def test_several_inputs_and_outputs_are_timed(runtime, precision):
    for module in runtimes.MODULES.get(runtime, ()):
        pytest.importorskip(module)
    timer = prepare(TokensAndTimes(), this_device(runtime, precision, batch_size=3), TOKENS_AND_TIMES)
    assert np.all(timer(3) > 0)


def test_inputs_are_like_the_example_and_always_the_same():
    tokens, times = runtimes.random_inputs(TOKENS_AND_TIMES, 3)
    assert (tokens.shape, tokens.dtype, tokens.unique().tolist()) == ((3, 6), torch.int64, [0])
    assert (times.shape, times.dtype) == ((3, 6), torch.float32)
    assert torch.equal(times, runtimes.random_inputs(TOKENS_AND_TIMES, 3)[1])
    assert torch.equal(*(runtimes.random_inputs(size, 2)[0] for size in ((3, 4, 4), (torch.empty(1, 3, 4, 4),))))


def test_threads_are_given_back():
    before = torch.get_num_threads()
    prepare(nn.Conv2d(3, 4, 3), Device("here", "torch", threads=before + 1), (3, 8, 8))(2)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (Device("x", "coreml"), "no runtime 'coreml'; there are torch,"),
        (Device("x", "torch", precision="int8"), "torch measures fp32 here, not 'int8'"),
        (Device("x", "onnxruntime", precision="int4"), "onnxruntime measures fp32 and int8 here, not 'int4'"),
    ],
)
def test_an_unsuitable_device_is_named(device, message):
    with pytest.raises(ValueError, match=message):
        prepare(nn.Identity(), device, (3, 8, 8))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named():
    with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
        runtimes.check(Device("x", "cuda_graph"))


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    def missing(name, *args):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"openvino is not installed: pip install 'supernet\[openvino\]'"):
        extras.require("openvino")


def test_a_device_survives_json_and_names_itself():
    device = this_device("onnxruntime", "int8", threads=2, batch_size=8)
    assert device.name.endswith("-onnxruntime-int8-2t-b8")
    assert Device.from_json(device.to_json()) == device
    assert device.hardware["cpu"]
    assert device.versions["torch"] == torch.__version__.partition("+")[0]


@pytest.mark.parametrize(
    ("cpu", "short"),
    [
        ("Intel(R) Xeon(R) Gold 6226 CPU @ 2.70GHz", "xeon-gold-6226"),
        ("AMD EPYC 7763 64-Core Processor", "epyc-7763"),
        ("", "machine"),
    ],
)
def test_a_name_keeps_what_tells_a_processor_from_others(cpu, short):
    assert device_module._short(cpu) == short


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "x"}', '{"name": "x", "runtime": "torch", "colour": "red"}'])
def test_what_is_no_device_is_refused(text):
    with pytest.raises(ValueError, match="no description of a device"):
        Device.from_json(text)


def test_a_device_name_is_a_folder_name():
    with pytest.raises(ValueError, match=r"unlike 'a/b'"):
        Device("a/b", "torch")
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Device("a", "torch", threads=0)


class Stand(contextlib.AbstractContextManager):
    """In the place of a stream, an event or a graph of CUDA."""

    cuda_stream = 7

    def __init__(self, *args, **options):
        pass

    def __exit__(self, *_):
        return None

    def wait_stream(self, stream):
        pass

    def record(self):
        pass

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return 1.0

    def replay(self):
        pass


@pytest.fixture
def stand_in(monkeypatch):
    """What runs on a GPU, on the CPU instead."""
    for owner in (nn.Module, torch.Tensor):
        monkeypatch.setattr(owner, "cuda", lambda self: self)
    for name in ("CUDAGraph", "Stream", "Event", "stream", "graph", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Stand)
    for name, value in (("is_available", True), ("synchronize", None)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)


class Watched(nn.Module):
    """Notes the precision that it is run in."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Conv2d(3, 4, 1), set()

    def forward(self, x):
        self.seen.add((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return self.layer(x)


def test_an_engine_is_timed_on_its_own_inputs(stand_in, monkeypatch):
    recorded = tensorrt.install(monkeypatch)
    device = Device("x", "tensorrt", batch_size=2)
    runtimes.check(device)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval()
    timer = runtimes.prepare(model, device, (3, 8, 8))
    runs = recorded.count("execute")
    assert timer(3).tolist() == [1, 1, 1]
    assert recorded.count("execute") == runs + 3
    (images,) = runtimes.random_inputs((3, 8, 8), 2)
    with torch.inference_mode():
        torch.testing.assert_close(recorded.outputs[-1], model(images), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="tensorrt measures fp32 here, not 'fp16'"):
        runtimes.check(Device("x", "tensorrt", "fp16"))


def test_a_graph_keeps_the_weights_that_it_reads(stand_in):
    model = Watched()
    weight = weakref.ref(model.layer.weight)
    timer = runtimes._cuda_graph(model, Device("x", "cuda_graph"), (torch.zeros(1, 3, 4, 4),))
    del model
    gc.collect()
    assert weight() is not None
    assert timer(3).tolist() == [1, 1, 1]
    del timer
    gc.collect()
    assert weight() is None


@pytest.mark.parametrize("runtime", ["cuda", "cuda_graph"])
def test_a_gpu_runs_in_the_precision_that_the_device_says(stand_in, runtime):
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    for precision, allowed in (("fp32", False), ("tf32", True)):
        model, device = Watched(), Device("x", runtime, precision)
        runtimes.check(device)
        timer = runtimes.RUNTIMES[runtime](model, device, (torch.zeros(1, 3, 4, 4),))
        model.seen.clear() if runtime == "cuda" else None
        timer(2)
        assert (allowed, allowed) in model.seen
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before
    with pytest.raises(ValueError, match=f"{runtime} measures fp32 and tf32 here, not 'int8'"):
        runtimes.check(Device("x", runtime, "int8"))
