"""Finding a learning rate by a range test: a short training in which it grows until the loss does.

Smith, Cyclical Learning Rates for Training Neural Networks, arXiv 1506.01186, section 3.3. There it grows linearly and
the accuracy is looked at; here it grows exponentially, over six orders of magnitude, and the loss of the training
images is, which a step knows by itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from supernet.training import distributed
from supernet.training.execution import Execution
from supernet.training.loop import StepResult
from supernet.training.loop.config import LoopConfig
from supernet.training.loop.divergence import TrainingError
from supernet.training.loop.signals import Stopped

# S steps

LOWEST, HIGHEST = 1e-5, 10.0  # learning rates of the first step and the last, before they are scaled
FEWEST_STEPS = 20
BLOWN_UP = 4.0  # times the lowest loss so far, where a test ends

AnyConfig = TypeVar("AnyConfig", bound=LoopConfig)
Train = Callable[[AnyConfig, Execution, Path, Callable[[StepResult], None]], object]


@dataclass(frozen=True)
class RangeTest:
    """What a range test found."""

    lrs: np.ndarray  # [S], as `LoopConfig.lr` says them, growing
    losses: np.ndarray  # [S], of the training images of each step

    @property
    def smoothed(self) -> np.ndarray:
        """The losses [S], each the mean of those around it, by weights that fall linearly to both sides."""
        width = max(len(self.losses) // 20, 1)
        weights = np.concatenate([np.arange(1, width + 1), np.arange(width - 1, 0, -1)])
        counted = np.convolve(np.ones_like(self.losses), weights, "same")
        return np.convolve(self.losses, weights, "same") / counted

    @property
    def suggestion(self) -> float | None:
        """The learning rate at which the smoothed loss falls fastest with the rate's logarithm; None where it never
        falls by more than a hundredth, and by more than twice the deviation of the losses around it."""
        smoothed = self.smoothed
        lowest = int(smoothed.argmin())
        noise = float(np.std(self.losses[: lowest + 1] - smoothed[: lowest + 1]))
        if lowest < 2 or smoothed[0] - smoothed[lowest] <= max(2 * noise, 0.01 * abs(smoothed[0])):
            return None
        slopes = np.gradient(smoothed[: lowest + 1], np.log(self.lrs[: lowest + 1]))
        return float(self.lrs[slopes.argmin()])


class _Over(Exception):
    """The test has seen enough."""


def range_test(train: Train, config: AnyConfig, execution: Execution, steps: int = 100) -> RangeTest:
    """The losses of a training of so many `steps` whose learning rate grows from 1e-5 to 10, before it is scaled, or of
    as many as there are until the loss is four times the lowest before.

    `train` trains from the beginning, by a configuration and an execution, into a folder, and tells of each step; its
    folder is a temporary one. The loss is the first of a step: a supernet's first subnet's, the largest where the
    method has it, or a single model's whole one. ValueError for too few `steps`, and where processes train together.
    """
    if steps < FEWEST_STEPS:
        raise ValueError(f"a range test takes at least {FEWEST_STEPS} steps, not {steps}")
    if distributed.world_size() > 1:
        raise ValueError("a range test runs in one process: leave out torchrun")
    epochs = max(config.epochs, steps)  # of a step at least
    config = replace(
        config, lr=HIGHEST, min_lr=LOWEST, sched="range", epochs=epochs, max_steps=steps, patience=None, ema_decay=None
    )
    execution = replace(execution, eval_epochs=0, log_steps=1, checkpoint_steps=steps + 1, minutes=None)
    execution = replace(execution, tensorboard=False, wandb=None, mlflow=None)
    lrs: list[float] = []
    losses: list[float] = []

    def note(result: StepResult) -> None:
        assert result.losses
        lrs.append(result.lr / config.scaled(1.0))
        losses.append(result.losses[0])
        if len(losses) == steps or losses[-1] > BLOWN_UP * min(losses):
            raise _Over

    with tempfile.TemporaryDirectory() as folder:
        try:
            train(config, execution, Path(folder), note)
        except (_Over, TrainingError):
            pass
        except Stopped as error:  # of which nothing is left to go on from
            raise KeyboardInterrupt from error
    if len(losses) < FEWEST_STEPS // 2:
        raise ValueError(f"the loss blows up within {len(losses)} steps from a learning rate of {LOWEST} on: set clip")
    return RangeTest(np.array(lrs), np.array(losses))
