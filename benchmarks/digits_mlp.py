"""The network of several benchmarks: an MLP 64-300-100-10 on scikit-learn's digits, LeNet-300-100 for 8x8 pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from supernet.tasks import Classification
from supernet.training.cohort import train_models
from supernet.training.data.datasets import Digits
from supernet.training.data.tensors import TensorData
from supernet.training.execution import Execution
from supernet.training.loop import StepResult
from supernet.training.loop.config import LoopConfig

CONFIG = LoopConfig(
    epochs=25,
    batch_size=60,
    opt="adam",
    lr=1.2e-3,
    scale_lr=False,
    weight_decay=0.0,
    sched="step",
    decay_epochs=1e9,
    warmup_epochs=0.0,
    label_smoothing=0.0,
)
"""Adam at 1.2e-3, constant, as of Frankle and Carbin (arXiv 1803.03635) for LeNet; batches of 60."""

EXECUTION = Execution(device="cpu", eval_epochs=0, log_steps=10**6, checkpoint_steps=10**6)


def digits(holdout: int = 0) -> TensorData:
    """The 1,437 digits to train on, [N, 64] from 0 to 1, without the last `holdout`, these, and the 360 of the test."""

    def part(name: str) -> tuple[Tensor, Tensor]:
        images = Digits(name)
        pixels = np.stack([np.asarray(image.convert("L")) for image, _ in images])
        return torch.from_numpy(pixels).float().flatten(1) / 255, torch.tensor(images.targets)

    images, labels = part("train")
    end = len(images) - holdout
    return TensorData((images[:end], labels[:end]), (images[end:], labels[end:]), part("test"), Digits.classes)


def mlp(seed: int) -> nn.Sequential:
    """The network with torch's weights for the seed."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        layers = [nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)]
    return nn.Sequential(*layers)


def trained(
    model: nn.Module,
    data: TensorData,
    folder: Path,
    config: LoopConfig = CONFIG,
    on_step: Callable[[StepResult], None] = lambda result: None,
    resume: bool = False,
) -> nn.Module:
    """`model`, trained in place by `config`, its run in `folder`."""
    task = Classification(num_classes=10, label_smoothing=0.0)
    settings = {"task": task, "execution": EXECUTION, "on_step": on_step, "resume": resume}
    return train_models([model], [None], data, config, folder, **settings)[0].eval()


@torch.no_grad()
def accuracy(model: nn.Module, part: tuple[Tensor, Tensor]) -> float:
    """In percent."""
    images, labels = part
    return 100 * (model.eval()(images).argmax(1) == labels).float().mean().item()


def mean_and_error(values) -> tuple[float, float]:
    """The mean over seeds and its standard error, which one seed has none of (NaN)."""
    values = np.asarray(values, float)
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")
