"""How a training is executed, apart from what its weights follow from.

A run goes on and is searched under another execution, and where its images lie elsewhere; all its other settings are
fixed when it begins.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import nn

from supernet.conditions import GIVEN, only_where
from supernet.evaluation import CALIBRATION_BYTES
from supernet.training.data import DataConfig

LOCATION = frozenset({"data.root", "data.test_root", "data.second_labels", "features.unlabelled"})
"""Settings of a job, by their path in it, that say where images lie."""


@dataclass(frozen=True)
class Execution:
    """On what a training runs, in which precision, and what it notes on its way.

    Rounding is the machine's: weights differ between devices, precisions and memory formats as far as sums of floating
    point numbers do.
    """

    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes a GPU if there is one."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Precision of the forward pass: bf16 where the device has it; fp16 with a scaled loss, where a step is skipped and
    the scale halved if gradients overflow."""
    channels_last: bool = True
    """Keep images and kernels in the channels-last memory format."""
    step: Literal["auto", "eager", "graphs", "compile"] = "auto"
    """How subnets run in a training step: eager, as they are; graphs, their pieces as CUDA graphs, where launching
    kernels takes longer than they do; compile, their pieces, or a single model, compiled, which takes minutes; auto,
    eager or graphs on a GPU, whichever the first steps show to be faster, elsewhere eager."""
    workers: int | None = None
    """Processes that load images; 0 loads in the training process. By default one a core of each training process, at
    most 16, and 0 for few images and those that are in memory; of streams, whose order follows from it, 4."""
    cache_bytes: int = 0
    """Bytes of memory, in each training process, for decoded images, which are then read and decoded once."""
    eval_epochs: int = 10
    """Epochs between evaluations on held-out images, in a supernet of the largest, the smallest and random subnets; 0
    for no evaluation."""
    eval_images: Annotated[int, only_where(eval_epochs=GIVEN)] = 2000
    """Held-out images in an evaluation, at most."""
    calibration_bytes: int = CALIBRATION_BYTES
    """Bytes that the activations of calibration images may take at once, at one depth of the largest subnet, in an
    evaluation of a supernet. BatchNorm is recalibrated exactly where all images are within them, and in chunks where
    they are not, which changes values by much less than other images would (docs/methods/calibration.md)."""
    eval_random: Annotated[int, only_where(eval_epochs=GIVEN)] = 2
    """Random subnets in an evaluation of a supernet, always the same ones."""
    log_steps: int = 10
    """Steps between lines in metrics.jsonl."""
    tensorboard: bool = False
    """Write metrics for TensorBoard as well."""
    wandb: str | None = None
    """Project of Weights & Biases that metrics go to as well."""
    mlflow: str | None = None
    """Experiment of MLflow that metrics go to as well, where MLFLOW_TRACKING_URI says."""
    checkpoint_steps: int | None = None
    """Steps between checkpoints; by default those of an epoch, and on a cluster 200."""
    checkpoint_minutes: float = 10.0
    """Minutes after which there is a checkpoint as well, in trainings whose epochs are long."""
    keep_checkpoints: int = 3
    """Number of the newest checkpoints kept."""
    minutes: float | None = None
    """Minutes after which a training ends, or each of its phases, with the weights that it has by then; the schedule
    of the learning rate knows nothing of it. Resumed, it goes on to its last step. None trains to the last step."""

    def __post_init__(self):
        for name in ("calibration_bytes", "log_steps", "checkpoint_steps", "keep_checkpoints"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is at least 1, not {value}")
        if self.checkpoint_minutes <= 0:
            raise ValueError(f"checkpoint_minutes is above 0, not {self.checkpoint_minutes}")
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"minutes is above 0, or None to train to the last step, not {self.minutes}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers is a number of processes, 0 or more, or None, not {self.workers}")
        if self.cache_bytes < 0:
            raise ValueError(f"cache_bytes is 0 or more, not {self.cache_bytes}")

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of images and kernels."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context of a forward pass on `device`, in the precision `amp`."""
        dtype = torch.float16 if self.amp == "fp16" else torch.bfloat16
        return torch.autocast(device.type, dtype, enabled=self.amp != "none")


DEFAULT = Execution()


def pick_device(name: str) -> torch.device:
    """The device `name`, `auto` for a GPU if there is one; ValueError if torch cannot compute there on this machine."""
    if name == "auto":
        index = int(os.environ.get("LOCAL_RANK", 0))
        return torch.device("cuda", index) if torch.cuda.is_available() else torch.device("cpu")
    device = named_device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r}: this machine has no GPU that torch can use; say cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r}: this machine has {torch.cuda.device_count()} GPUs")
    if device.type != "cuda":
        try:
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError):
            raise ValueError(f"device {name!r}: torch cannot compute there on this machine; say cpu") from None
    return device


def named_device(name: str) -> torch.device:
    """The device `name`, whether this machine has it or not; ValueError for a name that no device has."""
    try:
        return torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is cpu, cuda, cuda:N or auto, not {name!r}") from None


def worker_device(device: str, gpus: float) -> torch.device:
    """Where a Ray worker with the part `gpus` of a GPU, from 0 to 1, puts what it runs: there if it has one.

    ValueError for another `gpus`, and if `device`, which was asked for, is not auto and is another kind or a certain
    GPU: which one a worker has is Ray's choice.
    """
    if not 0 <= gpus <= 1:
        raise ValueError(f"a worker has a GPU or a part of one, from 0 to 1, not {gpus}")
    found = torch.device("cuda" if gpus else "cpu")
    if device != "auto" and named_device(device) != found:
        parts = f"{gpus:g} of a GPU" if gpus else "none"
        raise ValueError(
            f"device {device!r}: Ray workers run on the part of a GPU that they are given, here {parts}, or else on "
            "CPUs; say auto, and with --gpus-per-worker how much"
        )
    return found


def computes_ahead(device: torch.device) -> bool:
    """Whether Python goes on while `device` computes, so that asking for a value is waiting for it."""
    return device.type != "cpu"


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """The context in which a GPU may, or may not, compute convolutions and products of float32 on tensor cores, with 10
    bits of each factor's mantissa. Torch's own settings allow it for convolutions."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allowed
        yield
    finally:
        for backend, was_allowed in zip(backends, before):
            backend.allow_tf32 = was_allowed


def computes_bf16(device: torch.device) -> bool:
    """Whether `device` has instructions for bfloat16, without which it is slower than float32: on a CPU AVX512-BF16 or
    AMX."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def channels_last(module: nn.Module) -> nn.Module:
    """Put the kernels of `module` that are of four dimensions into the channels-last format, in place; returns it.

    `module.to(memory_format=torch.channels_last)` does the same, but fails on kernels of five dimensions.
    """
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if tensor.dim() == 4:  # `contiguous` would leave 1x1 kernels as they are, for which other sums are then taken
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return module


def differences(begun: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> str:
    """The settings of a job that are others than when its run was begun, with their values then: all but its execution
    and where its images lie."""
    found = []
    for name, value in begun.items():
        path = f"{prefix}{_in_a_line(name)}"
        if path == "execution" or path in LOCATION:
            continue
        if isinstance(value, Mapping) and isinstance(now.get(name), Mapping):
            found.append(differences(value, now[name], f"{path}."))
        elif value != now.get(name):
            found.append(f"{path}={_in_a_line(value)}")
    return ", ".join(filter(None, found))


def _in_a_line(value: object) -> str:
    return text if (text := str(value)).isprintable() else repr(value)


def located(config: DataConfig, root: str | None = None, test_root: str | None = None) -> DataConfig:
    """`config` with images at `root` and `test_root`, if these are given, as absolute paths if they are here at all."""
    return replace(
        config,
        root=_absolute(root or config.root),
        test_root=_absolute(test_root or config.test_root),
        second_labels=_absolute(config.second_labels),
    )


def _absolute(place: str | None) -> str | None:
    return os.path.abspath(place) if place and os.path.exists(place) else place
