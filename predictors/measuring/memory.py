"""The most memory that a network takes while it runs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from predictors.device import Device
from predictors.measuring import resident
from predictors.measuring.runtimes import Example, prepare, random_inputs, write_onnx
from supernet.artifacts.deployment import deployed

RUNS = 2  # on a GPU
STATUS = Path("/proc/self/status")


def check(device: Device) -> None:
    """ValueError, with the reason, if peak memory cannot be measured on `device`."""
    if device.runtime.startswith("cuda"):
        return
    if device.runtime not in resident.RUNTIMES:
        raise ValueError(
            f"peak memory cannot be measured with {device.runtime}, whose compiler's own memory would count; there are "
            f"{', '.join(resident.RUNTIMES)}, cuda and cuda_graph, or leave out peak_memory_bytes"
        )
    if not STATUS.exists():
        raise ValueError(f"peak memory cannot be measured without Linux's {STATUS}: leave out peak_memory_bytes")


def peak_memory_bytes(model: nn.Module, device: Device, example: Example) -> int:
    """Bytes that `model`, as `runtimes.prepare` takes it, needs at most on `device`, its weights included.

    On the CPU all that is resident of a process that holds the runtime and this network alone, from its beginning on:
    the runtime's own tens of megabytes, and what it does to load the network, are in it. On a GPU what torch allocates
    there (`torch.cuda.max_memory_allocated`) from the loading of the network on, without what CUDA takes for itself.
    Some seconds. RuntimeError with what that process said if it fails.
    """
    if device.runtime.startswith("cuda"):
        return _allocated(model, device, example)
    inputs = random_inputs(example, device.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        arrays, network = Path(folder, "inputs.npz"), Path(folder, "network.pt2")
        np.savez(arrays, *(tensor.numpy() for tensor in inputs))
        model = deployed(model)
        if device.runtime == "torch":
            torch.export.save(torch.export.export(model, inputs), network)
        else:
            network = write_onnx(model, device, inputs, Path(folder))
        command = [sys.executable, resident.__file__, device.runtime, network, arrays, str(device.threads)]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"the process that measures peak memory failed: {said[-1]}")
    return int(done.stdout)


def _allocated(model: nn.Module, device: Device, example: Example) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    timer = prepare(model, device, example)
    timer(RUNS)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
