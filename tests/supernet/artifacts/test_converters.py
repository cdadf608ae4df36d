import importlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from supernet import imports
from supernet.artifacts import converters
from supernet.artifacts.converters import CONVERTERS, Converter, convert
from tests import tensorrt


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, images, scale):
        features = self.norm(self.conv(images)).relu().mean((2, 3)) * scale
        return self.head(features), features


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = Two().eval()
    made.norm.running_mean.fill_(0.2)
    return made


INPUTS = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8), torch.tensor([[1.0], [2.0]])


@pytest.fixture
def gpu(monkeypatch):
    """What runs on a GPU, on the CPU instead, with a stand-in for TensorRT; what that records."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    stream = SimpleNamespace(cuda_stream=tensorrt.STREAM, synchronize=lambda: None)
    for name, value in (("is_available", True), ("synchronize", None), ("Stream", stream)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    return tensorrt.install(monkeypatch)


def test_an_engine_computes_what_the_module_does(tmp_path, model, gpu):
    assert convert(model, "tensorrt", tmp_path, INPUTS).difference < 1e-5
    assert gpu == ["without TF32", "build", "execute"]
    run = CONVERTERS["tensorrt"].runner(tmp_path / "model.engine", 1)
    for inputs in (INPUTS, tuple(2 * own for own in INPUTS)):  # in the same buffers
        with torch.inference_mode():
            expected = model(*inputs)
        for output, own in zip(run(*inputs), expected, strict=True):
            torch.testing.assert_close(output, own, rtol=1e-5, atol=1e-6)


def test_an_engine_that_cannot_be_built_or_read_is_one_line(tmp_path, model, gpu, monkeypatch):
    gpu.builds = False
    with pytest.raises(ValueError, match=r"^Two cannot be converted to tensorrt: TensorRT finds no way"):
        convert(model, "tensorrt", tmp_path, INPUTS)
    gpu.parses = False
    with pytest.raises(ValueError, match=r"^Two cannot be converted to tensorrt: no importer for Strange$"):
        convert(model, "tensorrt", tmp_path, INPUTS)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "model.engine").write_bytes(b"of another GPU")
    with pytest.raises(ValueError, match=r"model\.engine is no engine of this GPU and this version of TensorRT"):
        CONVERTERS["tensorrt"].runner(tmp_path / "model.engine", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="TensorRT needs an NVIDIA GPU, and torch finds none here"):
        convert(model, "tensorrt", tmp_path, INPUTS)


@pytest.mark.parametrize("name", CONVERTERS)
def test_a_file_computes_what_the_module_does(tmp_path, model, name):
    for module in CONVERTERS[name].modules:
        pytest.importorskip(module)
    if name == "tensorrt" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    found = convert(model, name, tmp_path, INPUTS)
    assert found.difference < 1e-5
    with torch.inference_mode():
        expected = model(*INPUTS)
        outputs = CONVERTERS[name].runner(tmp_path / CONVERTERS[name].file, 1)(*INPUTS)
    for output, own in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, own, rtol=1e-5, atol=1e-6)


def stand_in(monkeypatch, change):
    """A format whose files compute what the module does, and then `change` it."""
    kept = {}

    def write(model, path, inputs):
        path.write_bytes(b"written")
        kept["model"] = model

    def runner(path, threads):
        assert path.read_bytes() == b"written"
        return lambda *inputs: tuple(change(output) for output in kept["model"](*inputs))

    monkeypatch.setitem(CONVERTERS, "other", Converter("model.other", (), write, runner))


def test_a_file_that_agrees_is_written(tmp_path, model, monkeypatch):
    stand_in(monkeypatch, lambda output: output + 1e-6)
    assert convert(model, "other", tmp_path, INPUTS).difference == pytest.approx(1e-6, rel=0.2)
    assert [path.name for path in tmp_path.iterdir()] == ["model.other"]


@pytest.mark.parametrize("change", [lambda output: 1.01 * output, lambda output: output * float("nan")])
def test_a_file_that_computes_something_else_is_not_written(tmp_path, model, monkeypatch, change):
    stand_in(monkeypatch, change)
    with pytest.raises(ValueError, match=r"Two in other gives outputs that differ by .*: it is not written"):
        convert(model, "other", tmp_path, INPUTS)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_converted_is_one_line(tmp_path, model, monkeypatch):
    def write(model, path, inputs):
        path.write_bytes(b"half")
        raise Exception("no such operation\nand more")

    monkeypatch.setitem(CONVERTERS, "other", CONVERTERS["litert"]._replace(modules=(), write=write))
    with pytest.raises(ValueError, match=r"^Two cannot be converted to other: no such operation$"):
        convert(model, "other", tmp_path, INPUTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", CONVERTERS)
def test_a_missing_package_is_named_with_its_extra(tmp_path, model, monkeypatch, name):
    def missing(module):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module.partition(".")[0])

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"is not installed: pip install 'supernet\["):
        convert(model, name, tmp_path, INPUTS)


def test_an_unknown_format_is_named(tmp_path, model):
    with pytest.raises(ValueError, match="no format 'coreml'; there are openvino, executorch, litert"):
        convert(model, "coreml", tmp_path, INPUTS)
    assert imports.EXTRAS.keys() >= {m for own in converters.CONVERTERS.values() for m in own.modules}
