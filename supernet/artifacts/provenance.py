"""What a result was made with."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path

PACKAGES = (
    "supernet",
    "torch",
    "timm",
    "numpy",
    "scipy",
    "ray",
    "pymoo",
    "scikit-learn",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "executorch",
    "litert-torch",
    "ai-edge-litert",
    "tensorrt",
)


def versions() -> dict[str, str]:
    """Versions of Python and of those of our packages and dependencies that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, str | int]:
    """The processor's name, the number of CPUs this process may use, and the system; the GPU, where torch finds one,
    their number, and the version of CUDA."""
    return processor() | gpu()


def processor() -> dict[str, str | int]:
    """That of `hardware` but for the GPU."""
    return {
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
    }


def gpu() -> dict[str, str | int]:
    """The GPU alone; nothing where there is none."""
    import torch

    if not torch.cuda.is_available():
        return {}
    return {
        "gpu": torch.cuda.get_device_name(),
        "gpus": torch.cuda.device_count(),
        "cuda": str(torch.version.cuda),
    }


def command() -> str:
    """The command line of this process for a shell, with the script's path as it was typed."""
    python = [] if sys.argv[0].startswith("supernet ") else ["python"]  # see supernet_cli.main
    return " ".join([*python, sys.argv[0], *map(shlex.quote, sys.argv[1:])])


def today() -> str:
    return datetime.date.today().isoformat()


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
