"""Say what is installed here: versions, devices, and what each optional extra enables.

    supernet doctor

Exit code 2 if a package that every installation needs is missing or too old; extras may be missing. Seconds.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from packaging.requirements import Requirement
from rich.table import Table

from supernet import __version__
from supernet.artifacts import provenance
from supernet_cli.command_line import console
from supernet_cli.flags import parse_flags

EXTRAS = {
    "onnx": "measuring with ONNX Runtime; model.onnx and model.int8.onnx",
    "openvino": "measuring with OpenVINO; model.xml",
    "executorch": "measuring with ExecuTorch; model.pte",
    "litert": "measuring with LiteRT; model.tflite",
    "tensorrt": "measuring with TensorRT on a GPU; model.engine",
    "report": "report.html of a search or a sweep",
    "datasets": "images from hfds/ and wds/ datasets",
    "text": "training on texts, whose tokenizer is trained or read",
    "tensorboard": "a training's metrics in TensorBoard",
    "wandb": "a training's metrics in Weights & Biases",
    "mlflow": "a training's metrics in MLflow",
    "energy": "the energy of networks on a GPU",
    "service": "compression as a service: supernet serve",
    "docs": "building the documentation",
    "test": "the tests and the linter",
}


@dataclass(frozen=True)
class Arguments:
    """None."""


def main() -> None:
    parse_flags(Arguments, __doc__)
    console.print(f"supernet {__version__}, Python {platform.python_version()}", highlight=False)
    needed = requirements()
    packages = Table("package", "version", "")
    for requirement in needed:
        packages.add_row(requirement.name, version(requirement.name) or "", problem(requirement) or "ok")
    console.print(packages)
    for line in devices():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    extras = Table("extra", "enables", "")
    for extra, enabled in EXTRAS.items():
        problems = describe(requirements(extra))
        extras.add_row(extra, enabled, f"{problems}: pip install 'supernet\\[{extra}]'" if problems else "installed")
    console.print(extras)
    if problems := describe(needed):
        raise ValueError(f"{problems}: pip install --upgrade supernet")


def requirements(extra: str = "") -> list[Requirement]:
    """What the extra asks for beyond what every installation needs, or else what that is.

    ValueError if supernet is not installed.
    """
    try:
        every = [Requirement(line) for line in importlib.metadata.requires("supernet") or ()]
    except importlib.metadata.PackageNotFoundError:
        raise ValueError("supernet is imported without being installed: pip install -e . in its checkout") from None
    for_all = [requirement for requirement in every if _applies(requirement, "")]
    return [r for r in every if _applies(r, extra) and r not in for_all] if extra else for_all


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def problem(requirement: Requirement) -> str:
    """What is wrong with the package that is required, "" if nothing is."""
    found = version(requirement.name)
    if found is None:
        return "missing"
    return "" if requirement.specifier.contains(found, prereleases=True) else f"needs {requirement.specifier}"


def describe(required: Sequence[Requirement]) -> str:
    """All problems in a line."""
    return ", ".join(f"{requirement.name} {found}" for requirement in required if (found := problem(requirement)))


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def devices() -> Iterator[str]:
    """A line for the processor and for each GPU."""
    found = provenance.hardware()
    yield f"cpu: {found['cpu']}, {found['cpus']} cores for this process, {torch.get_num_threads()} threads in torch"
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        memory, capability = f"{gpu.total_memory / 2**30:.0f} GiB", f"compute capability {gpu.major}.{gpu.minor}"
        yield f"cuda:{index}: {gpu.name}, {memory}, {capability}, CUDA {torch.version.cuda}"
    if not torch.cuda.is_available():
        yield "no GPU that torch can use"
