"""Training a subnet on: as it is, for int8, or with gates that close on channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from compress.pruning.gates import train_gated
from compress.pruning.subnet import narrowed_config
from compress.quantisation.training import PrecisionJob, run_precision_job
from supernet.artifacts.ownership import owned
from supernet.artifacts.subnet import Subnet
from supernet.artifacts.subnet_config import SubnetConfig
from supernet.channels import trace
from supernet.training.loop import StepResult
from supernet.training.standalone import prepare_job


@dataclass(frozen=True)
class FineTuningJob(PrecisionJob):
    """All that defines a training of one model, for a precision or with gates."""

    gates: float | None = None
    """Penalty on channels' gates: those that close are taken away (docs/methods/pruning.md). Needs a teacher, which may
    be the subnet itself, and --kl."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gates is None:
            return
        if self.gates < 0:
            raise ValueError(f"the penalty on gates is not negative, unlike {self.gates}")
        if self.precision != "fp32" or self.peers:
            raise ValueError("gates close in float and in one network at a time: leave out precision and peers")
        if not self.objective.kl:
            raise ValueError("gates close where a teacher is followed without them: give a teacher, and kl a weight")


def run_fine_tuning(
    job: FineTuningJob,
    directory: Path,
    *,
    resume: bool = False,
    on_step: Callable[[StepResult], None] = lambda result: None,
) -> Subnet:
    """Train the model of `job`; as `compress.quantisation.training.run_precision_job`, and with gates what is left of
    it, a subnet of the space `supernet.families.traced.narrowed`."""
    if job.gates is None:
        return run_precision_job(job, directory, resume=resume, on_step=on_step)
    with owned(directory):
        data, [(own, _, arch, model)], teacher, objective, begin = prepare_job(job, directory, resume)
        config = SubnetConfig.of(own.space, own.space_options, arch, data)
        before = {group.name: group.size for group in trace(model.eval(), *config.example()).channels}
        model, sizes = train_gated(
            model,
            teacher,
            *config.example(),
            data,
            job.train,
            directory,
            job.gates,
            objective=objective,
            execution=job.execution,
            resume=resume,
            on_step=on_step,
            on_begin=begin,
        )
        model = model.to("cpu", memory_format=torch.contiguous_format).eval()
        taken = {name: size for name, size in sizes.items() if size < before[name]}
        return Subnet(model, narrowed_config(config, model, taken))
