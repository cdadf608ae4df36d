"""Training the blocks of a supernet, each by itself, to do what the block of a teacher does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from distill.blockwise import Teacher, counted, relative_error
from search.blockwise.blocks import Block
from search.parallel import ray_running
from supernet.artifacts.ownership import owned
from supernet.errors import first_line
from supernet.own_code import modules_from_files
from supernet.tasks import Classification, Task
from supernet.training.data import Data
from supernet.training.execution import Execution
from supernet.training.loop import Loop, StepResult
from supernet.training.loop.config import LoopConfig
from supernet.training.loop.signals import Signals
from supernet.training.randomness import Stream, part_seed

logger = logging.getLogger(__name__)

RETRIES = 3  # of a Ray worker that dies

CLASSIFICATION = Classification()
Weights = dict[int, dict[str, Tensor]]  # by the position of a block, its state dict


@dataclass(frozen=True)
class BlockwiseConfig:
    """How blocks learn from a teacher. The paper: 20 epochs, Adam, a rate of 0.002 to 0.005 times 0.9 an epoch."""

    epochs: int = 20
    """Passes over the training images."""
    batch_size: int = 64
    """Images a step."""
    lr: float = 0.002
    """Learning rate of Adam in the first epoch."""
    decay: float = 0.9
    """Factor of the learning rate after every epoch."""
    weight_decay: float = 1e-4
    """L2 penalty of Adam, on all parameters."""
    clip: float | None = None
    """Limit of each block's gradient, in the sense of clip_mode; none by default."""
    clip_mode: Literal["norm", "value"] = "norm"
    """Whether the norm of all gradients of a block together is limited, or every entry by itself."""
    ema_decay: float | None = None
    """Decay a step of an exponential moving average of the weights, which is then what is rated."""

    def __post_init__(self):
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay is from above 0 to 1, not {self.decay}")
        self.for_loop(seed=0)  # which refuses the rest

    def for_loop(self, seed: int) -> LoopConfig:
        """These settings as the loop's."""
        return LoopConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            opt="adam",
            lr=self.lr,
            scale_lr=False,
            weight_decay=self.weight_decay,
            decay_all=True,
            sched="step",
            warmup_epochs=0.0,
            decay_rate=self.decay,
            decay_epochs=1.0,
            clip=self.clip,
            clip_mode=self.clip_mode,
            ema_decay=self.ema_decay,
            seed=seed,
        )


def train_blocks(
    blocks: Mapping[int, Block],
    teacher: Teacher,
    data: Data,
    resolution: int,
    config: LoopConfig,
    run_dir: Path,
    execution: Execution,
    *,
    task: Task = CLASSIFICATION,
    on_step: Callable[[StepResult], None] = lambda result: None,
    on_begin: Callable[[], None] = lambda: None,
) -> Weights:
    """Train some of a network's blocks, by their positions, in place; the weights to use, which are those of the moving
    average if there is one.

    Every step trains one uniform path of each block by `relative_error`, drawn from the seed, the block and the step.
    The block k goes from the teacher's features at its point k - 1, for the first block what the network is called
    with, to those at its point k, where these mean something (`Task.mask`). Networks are called with what `task` makes
    of a batch. Which blocks train together makes no difference, unless gradients overflow in fp16, where all
    of them skip the step.

    Goes on from the last checkpoint, and writes and raises as `supernet.training.loop.Loop` does: TrainingError names
    the block whose loss is not finite or has blown up.
    """
    names = [f"block {index}, which ends with {block.name}" for index, block in blocks.items()]
    seed = part_seed(config.seed, Stream.PATHS)
    with owned(run_dir), Signals() as signals:
        loop = Loop(
            nn.ModuleList(block.net for block in blocks.values()),
            data,
            config,
            run_dir,
            _no_metrics,
            execution,
            resume=True,
            on_step=on_step,
            on_begin=on_begin,
            uninformed=1.0,  # the relative error of a block that answers the mean
            apart=len(blocks),
            signals=signals,
        )
        for step, batch in loop.batches(resolution):
            first, *further = inputs = task.inputs(batch, None)
            mask = task.mask(inputs)
            with execution.autocast(loop.device):
                features = [first, *teacher(*inputs)]
            losses = []
            for index, block in blocks.items():
                path = block.net.space.sample(np.random.default_rng([seed, index, step]))
                with loop.seeded(step, index), execution.autocast(loop.device):
                    output = block.net(features[index], *further, path, accumulate=True)
                loss = relative_error(*(counted(own, mask) for own in (output, features[index + 1])))
                loop.scale(loss).backward()
                losses.append(loss.detach())
            loop.update(step, torch.stack(losses), names)
            loop.finish(step, {"losses": torch.stack(losses)})
        return {index: net.state_dict() for index, net in zip(blocks, loop.result)}


def on_workers(trainings: Sequence[Callable[[], Weights]], workers: int) -> list[Weights]:
    """What each of the `trainings` gives, on Ray workers of one CPU each, of this machine or the running cluster.

    A worker that dies is replaced and goes on from its last checkpoint. Raises what a training raises, and
    ChildProcessError for one whose workers die again and again; the others end then, too.
    """
    import ray

    references: list[ray.ObjectRef] = []
    with ray_running(cpus=workers):
        try:
            for module in modules_from_files():  # workers, which may lack the files, get the code itself
                ray.cloudpickle.register_pickle_by_value(module)
            task = ray.remote(_call).options(num_cpus=1, max_retries=RETRIES)
            references += [task.remote(ray.put(training)) for training in trainings]
            return ray.get(references)
        except ray.exceptions.RayError as error:
            for reference in references:
                ray.cancel(reference, force=True)
            if isinstance(error, ray.exceptions.RayTaskError):
                raise error.cause from None
            raise ChildProcessError(
                f"a worker that trains blocks died {RETRIES + 1} times ({first_line(error)}); start the search again, "
                "which goes on from the last checkpoints"
            ) from error


def _call(training: Callable[[], Weights]) -> Weights:
    return training()


def _no_metrics(net: Any) -> dict[str, Any]:
    """Blocks are not evaluated on their way: their losses say how far they are."""
    return {}
