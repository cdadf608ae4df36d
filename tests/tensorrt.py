"""In the place of TensorRT: its Python interface as far as it is used, by ONNX Runtime on the memory of this process.

A plan is the ONNX file, and an address that of a buffer of the CPU, which is really read and written.
"""

import ctypes
import sys
from enum import Enum
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime
import torch

STREAM = 7
TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


class Recorded(list):
    """The calls that change something, by name, and the outputs of each run."""

    def __init__(self, *, parses=True, builds=True):
        super().__init__()
        self.parses, self.builds, self.outputs = parses, builds, []


def install(monkeypatch, **options):
    """Put it where `import tensorrt` finds it; what it records."""
    recorded = Recorded(**options)
    module = ModuleType("tensorrt")
    module.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, severity: None})
    module.BuilderFlag = Enum("BuilderFlag", ["TF32", "FP16"])
    module.TensorIOMode = Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
    module.nptype = lambda dtype: TYPES[dtype]
    module.Builder = lambda logger: Builder(recorded)
    module.OnnxParser = lambda network, logger: Parser(recorded, network)
    module.Runtime = lambda logger: Runtime(recorded, module)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return recorded


class Builder:
    def __init__(self, recorded):
        self.recorded = recorded

    def create_network(self, flags):
        return SimpleNamespace(content=b"")

    def create_builder_config(self):
        return SimpleNamespace(clear_flag=lambda flag: self.recorded.append(f"without {flag.name}"))

    def build_serialized_network(self, network, config):
        self.recorded.append("build")
        return memoryview(network.content) if self.recorded.builds else None


class Parser:
    def __init__(self, recorded, network):
        self.recorded, self.network, self.num_errors = recorded, network, 0 if recorded.parses else 1

    def parse_from_file(self, path):
        with open(path, "rb") as file:
            self.network.content = file.read()
        return self.recorded.parses

    def get_error(self, index):
        return SimpleNamespace(desc=lambda: "no importer for Strange")


class Runtime:
    def __init__(self, recorded, module):
        self.recorded, self.module = recorded, module

    def deserialize_cuda_engine(self, plan):
        return Engine(self.recorded, self.module, plan) if plan != b"of another GPU" else None


class Engine:
    def __init__(self, recorded, module, plan):
        self.recorded, self.module = recorded, module
        self.session = onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = self.session.get_inputs(), self.session.get_outputs()
        self.tensors = {own.name: own for own in (*self.outputs, *self.inputs)}  # in no order that may be counted on
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_mode(self, name):
        mode = self.module.TensorIOMode
        return mode.INPUT if name in {own.name for own in self.inputs} else mode.OUTPUT

    def get_tensor_shape(self, name):
        return self.tensors[name].shape

    def get_tensor_dtype(self, name):
        return self.tensors[name].type

    def create_execution_context(self):
        return Context(self)


class Context:
    def __init__(self, engine):
        self.engine, self.addresses = engine, {}

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle):
        assert stream_handle == STREAM
        assert self.addresses.keys() == self.engine.tensors.keys()
        feed = {own.name: self.memory(own.name).copy() for own in self.engine.inputs}
        found = self.engine.session.run(None, feed)
        for own, output in zip(self.engine.outputs, found, strict=True):
            self.memory(own.name)[...] = output
        self.engine.recorded.append("execute")
        self.engine.recorded.outputs.append(torch.from_numpy(found[0].copy()))
        return True

    def memory(self, name):
        shape, dtype = self.engine.tensors[name].shape, np.dtype(TYPES[self.engine.tensors[name].type])
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(self.addresses[name]), dtype).reshape(shape)
