import importlib

import numpy as np
import pytest
import torch
from torch import nn

from predictors import Device, prepare, this_device
from predictors import device as device_module
from predictors.measuring import runtimes
from supernet import imports as extras
from supernet.families import FAMILIES


@pytest.mark.parametrize(
    ("runtime", "precision"), [("torch", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8")]
)
def test_runs_are_timed_one_by_one(runtime, precision):
    if runtime == "openvino":
        pytest.importorskip("openvino")
    family = FAMILIES["mobilenet_v3_micro"]()
    device = this_device(runtime, precision)
    timer = prepare(family.build(family.space.smallest), device, (3, 24, 24))
    runs_ms = timer(5)
    assert runs_ms.shape == (5,)
    assert np.all(runs_ms > 0)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    prepare(nn.Conv2d(3, 4, 3), Device("here", "torch", threads=before + 1), (3, 8, 8))(2)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (Device("x", "tensorrt"), "no runtime 'tensorrt'; there are torch,"),
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
