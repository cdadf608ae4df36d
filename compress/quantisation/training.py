"""Fine-tuning a subnet for int8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from compress.quantisation.aware import QuantisationAware
from compress.quantisation.network import Quantised
from compress.quantisation.onnx_file import export_int8
from compress.quantisation.processor import weight_bits
from compress.quantisation.ranges import CALIBRATION_IMAGES, activation_ranges
from supernet.artifacts.deployment import deployed
from supernet.artifacts.subnet import Subnet
from supernet.imports import require
from supernet.training import distributed
from supernet.training.data import ImageData
from supernet.training.loop import StepResult
from supernet.training.standalone import ModelJob, Trainee, run_model_job

INT8_FILE = "model.int8.onnx"


@dataclass(frozen=True)
class PrecisionJob(ModelJob):
    """All that defines the training of one model for a precision."""

    precision: Literal["fp32", "int8"] = "fp32"
    """What the model is trained for: int8 rounds weights and activations in training."""
    weight_bits: int | None = None
    """Bits of weights in int8: 7 for x86 processors without VNNI, otherwise 8; by default what this machine needs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision not in ("fp32", "int8"):
            raise ValueError(f"the precision is fp32 or int8, not {self.precision!r}")
        if self.weight_bits not in (None, 7, 8):
            raise ValueError(f"weights in int8 have 7 or 8 bits, not {self.weight_bits}")
        if self.precision == "int8" and self.execution.step == "compile":
            raise ValueError("training for int8 looks at every operation: leave out step=compile")
        if self.precision == "int8" and (self.objective.by_features or self.objective.has_heads):
            raise ValueError("training for int8 takes losses on outputs, labels, kl and mutual say, not on features")


def run_precision_job(
    job: PrecisionJob,
    directory: Path,
    *,
    resume: bool = False,
    on_step: Callable[[StepResult], None] = lambda result: None,
) -> Subnet:
    """Train the model that `job` describes as `supernet.training.standalone.run_model_job` does.

    For int8 the model that comes out has the values of its rounded weights, and `directory` has model.int8.onnx, which
    computes what was trained.
    """
    if job.precision == "fp32":
        return run_model_job(job, directory, resume=resume, on_step=on_step)
    require("onnx")

    def aware(trainee: Trainee, data: ImageData) -> nn.Module:
        resolution = trainee.family.resolution(trainee.arch)
        images = data.calibration_batches(resolution, CALIBRATION_IMAGES, job.train.seed)
        plain = deployed(trainee.model)
        ranges = activation_ranges(plain, [trainee.family.task.inputs(b, trainee.arch) for b in images], "extremes")
        return QuantisationAware(trainee.model, ranges, job.weight_bits or weight_bits())

    trained, config = run_model_job(job, directory, resume=resume, on_step=on_step, around=aware)
    network: Quantised = trained.quantised()
    if distributed.rank() == 0:
        export_int8(
            network,
            directory / INT8_FILE,
            config.example(),
            names=config,
            dynamic_batch=True,
            metadata=config.metadata(),
        )
    return Subnet(trained.plain(), config)
