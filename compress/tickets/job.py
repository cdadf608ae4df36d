"""Finding a lottery ticket of a network that a job names, as the networks of other jobs are trained."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from compress.tickets.iterative import Round, TicketConfig, find_ticket, note_round
from supernet.answers.answers import quality
from supernet.artifacts.ownership import owned
from supernet.artifacts.subnet import Subnet
from supernet.artifacts.subnet_config import SubnetConfig
from supernet.training import distributed
from supernet.training.cohort import train_models
from supernet.training.execution import pick_device
from supernet.training.loop import StepResult
from supernet.training.standalone import ModelJob, prepare_job

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TicketJob(ModelJob):
    """All that defines a lottery ticket: the network, images, and how it is trained in each round."""

    ticket: TicketConfig = dataclasses.field(default_factory=TicketConfig)

    def __post_init__(self):
        super().__post_init__()
        if self.peers:
            raise ValueError("tickets are found one at a time: leave out peers and the loss mutual")
        if self.ticket.rewind_epochs and self.objective.has_companions:
            raise ValueError(
                "a ticket goes back to rewind_epochs of the network alone, not of what learns beside it: leave out "
                "rewind_epochs, or the losses that have parts of their own"
            )


def run_ticket_job(
    job: TicketJob,
    directory: Path,
    *,
    resume: bool = False,
    on_step: Callable[[StepResult], None] = lambda result: None,
    on_line: Callable[[dict[str, float]], None] = lambda line: None,
) -> Subnet:
    """The ticket that the last round of `job` trains, on the CPU in eval mode, with its pruned weights 0.

    rounds.jsonl in `directory` has the density and the accuracy on held-out images of each round, which `on_line` gets
    as well; what else lies there `compress.tickets.iterative.find_ticket` says. Resumes and raises as
    `supernet.training.standalone.run_model_job` does; it takes one process.
    """
    if distributed.world_size() > 1:
        raise ValueError("tickets are found in one process: start it without torchrun")
    with owned(directory):
        data, [(own, family, arch, model)], teacher, objective, begin = prepare_job(job, directory, resume)
        resolution = family.resolution(arch)

        def train(model: nn.Module, folder: Path, also: Callable[[StepResult], None]) -> nn.Module:
            def both(result: StepResult) -> None:
                also(result)
                on_step(result)

            (trained,) = train_models(
                [model],
                [resolution],
                data,
                job.train,
                folder,
                objective,
                teacher,
                execution=job.execution,
                resume=True,  # what should not be gone on with was set aside
                on_step=both,
                on_begin=begin,
            )
            return trained

        def on_round(found: Round) -> None:
            device = pick_device(job.execution.device)
            batches = data.evaluation_batches(data.holdout, resolution)
            line = {"accuracy": quality(found.trained.to(device).eval(), batches).top1}
            found.trained.cpu()
            note_round(directory / "rounds.jsonl", found, line)
            on_line({"round": found.number, "density": found.density, **line})

        steps = data.steps_per_epoch(job.train.batch_size)
        found = find_ticket(model, job.ticket, job.train, steps, train, directory, resume=resume, on_round=on_round)
        return Subnet(found.trained.eval(), SubnetConfig.of(own.space, own.space_options, arch, data))
