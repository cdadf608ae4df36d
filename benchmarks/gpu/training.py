"""How a training gets on in its first minutes on a GPU, with all that new shapes cost.

    python benchmarks/gpu/training.py --step graphs --resolution-steps 200 --json benchmarks/results/training_CARD.json

The sandwich rule on random images that lie in the GPU's memory, each random subnet in its own resolution or, with
`--resolution-steps`, all in one for so many steps. A process is of one setting, since it keeps what it learnt about
shapes. The file is written every fifty steps; `ms` in it has the time of each step, of which a single one says little
on a GPU, where Python runs ahead: figures are of ten at a time. A minute and a half.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from report import report, save

from supernet.families import FAMILIES
from supernet.training.data.tensors import TensorData
from supernet.training.execution import Execution, pick_device
from supernet.training.loop import StepResult
from supernet.training.step import TrainConfig
from supernet.training.train import train

TOGETHER = 10  # steps


@dataclass(frozen=True)
class Arguments:
    space: str = "ofa_mobilenet_v3"
    """Search space."""
    batch_size: int = 64
    """Images a step."""
    step: Literal["eager", "graphs", "compile", "auto"] = "eager"
    """How steps are executed."""
    resolution_steps: int = 1
    """Steps for which the random subnets' resolution stays."""
    seconds: float = 60
    """How long the training goes on, behind its first step."""
    most_steps: int = 100_000
    """Steps after which it ends at the latest."""
    device: str = "cuda"
    """cuda, or cpu to try the script out."""
    amp: Literal["none", "bf16"] = "bf16"
    """Precision."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    device = pick_device(arguments.device)
    family = FAMILIES[arguments.space]()
    size, count = family.resolution(family.space.largest), 4 * arguments.batch_size
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, size, size, generator=draw).to(device, memory_format=torch.channels_last)
    labels = torch.randint(family.num_classes, (count,), generator=draw).to(device)
    few = images[:2], labels[:2]
    config = TrainConfig(
        epochs=arguments.most_steps // 4,
        batch_size=arguments.batch_size,
        resolution_steps=arguments.resolution_steps,
        max_steps=arguments.most_steps,
        lr=1e-3,
        warmup_epochs=0,
    )
    execution = Execution(
        arguments.device,
        arguments.amp,
        step=arguments.step,
        eval_epochs=0,
        log_steps=TOGETHER,
        checkpoint_steps=10**9,
        minutes=arguments.seconds / 60,
    )
    settings = {name: value for name, value in vars(arguments).items() if isinstance(value, int | float | str)}
    times = [time.perf_counter()]

    def on_step(result: StepResult) -> None:
        times.append(time.perf_counter())
        if result.step % 50 == 0:
            save([], summary(times, arguments.batch_size), arguments.json, settings=settings, ms=milliseconds(times))

    net = family.supernet().to(device)
    with TemporaryDirectory() as folder:
        train(family, net, TensorData((images, labels), few, few), config, Path(folder), execution, on_step=on_step)
    found = summary(times, arguments.batch_size)
    if device.type == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        found["reserved_gib"] = torch.cuda.max_memory_reserved(device) / 2**30
    report([], found, arguments.json, settings=settings, ms=milliseconds(times))


def milliseconds(times: list[float]) -> list[float]:
    return (1e3 * np.diff(times)).round(2).tolist()


def summary(times: list[float], batch_size: int) -> dict[str, float]:
    """Of the whole training, and of its last third."""
    steps = np.diff(times)
    tens = steps[: len(steps) // TOGETHER * TOGETHER].reshape(-1, TOGETHER).mean(1) if len(steps) >= TOGETHER else steps
    late = tens[-max(1, len(tens) // 3) :]
    return {
        "steps": len(steps),
        "first_step_s": float(steps[0]),
        "images_per_second": batch_size * len(steps) / float(steps.sum()),
        "images_per_second_late": batch_size / float(late.mean()),
        "step_ms_late": 1e3 * float(np.median(late)),
        "slowest_step_ms_late": 1e3 * float(steps[-len(steps) // 3 :].max()),
    }


if __name__ == "__main__":
    main()
