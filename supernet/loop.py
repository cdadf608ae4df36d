"""What every training loop here has in common: settings, optimizer and schedule, checkpoints."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from supernet.checkpoint import load_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopConfig:
    """How any network is trained."""

    epochs: int = 30
    """Passes over the training images."""
    batch_size: int = 64
    """Images a step, over all processes together."""
    opt: str = "sgd"
    """timm's name of the optimizer; sgd has Nesterov momentum."""
    lr: float = 0.1
    """Peak learning rate for 256 images a step; it is scaled by batch_size / 256."""
    momentum: float = 0.9
    """Momentum, for optimizers that have it."""
    weight_decay: float = 1e-5
    """Weight decay of weights with two and more dimensions; BatchNorm and biases have none."""
    sched: Literal["cosine", "step", "poly"] = "cosine"
    """timm's name of the schedule of the learning rate, updated every step."""
    warmup_epochs: float = 1.0
    """Epochs in which the learning rate grows linearly from zero."""
    decay_rate: float = 0.1
    """Factor of each decay of the schedule step; exponent of the schedule poly, where 1 is linear."""
    decay_epochs: float = 30.0
    """Epochs between the decays of the schedule step."""
    min_lr: float = 0.0
    """Learning rate, before scaling, that the schedule ends in (cosine, poly) or stops falling at (step)."""
    label_smoothing: float = 0.1
    """Part of the true label's probability that is spread over all classes; in a supernet for the
    largest subnet."""
    drop_rate: float = 0.0
    """Dropout before the classifier; in a supernet for the largest subnet."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block, growing linearly over the blocks; in a supernet for the
    largest subnet."""
    clip: float | None = None
    """Limit of the gradient, in the sense of clip_mode; none by default."""
    clip_mode: Literal["norm", "value"] = "norm"
    """Whether the norm of all gradients together is limited, or every entry by itself."""
    ema_decay: float | None = None
    """Decay a step of an exponential moving average of the weights, which is then what is evaluated and kept."""
    amp: Literal["none", "bf16"] = "none"
    """Precision of the forward pass; bf16 where the device has it."""
    channels_last: bool = True
    """Keep images and kernels in the channels-last memory format."""
    eval_epochs: int = 10
    """Epochs between evaluations on held-out images, in a supernet of the largest, the smallest and random subnets; 0
    for none."""
    eval_images: int = 2000
    """Held-out images in an evaluation, at most."""
    log_steps: int = 10
    """Steps between lines in metrics.jsonl."""
    tensorboard: bool = False
    """Write metrics for TensorBoard as well."""
    checkpoint_steps: int = 200
    """Steps between checkpoints."""
    keep_checkpoints: int = 3
    """Number of the newest checkpoints kept."""
    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes a GPU if there is one."""
    seed: int = 0
    """All that is random follows from it: initial weights, order and augmentation of images, subnets, dropout."""

    def __post_init__(self):
        for name in ("epochs", "batch_size", "log_steps", "checkpoint_steps", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
        for name in ("drop_rate", "drop_path_rate", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is from 0 to below 1, not {getattr(self, name)}")
        if self.lr <= 0:
            raise ValueError(f"lr is above 0, not {self.lr}")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(f"warmup_epochs is from 0 to the {self.epochs} epochs, not {self.warmup_epochs}")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip is above 0, or none, not {self.clip}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay is between 0 and 1, not {self.ema_decay}")


class TrainingError(RuntimeError):
    """Training cannot go on: the loss or the gradient is not finite."""


class StepResult(NamedTuple):
    """What a step did, for logs and progress bars."""

    step: int  # counted from 1
    steps: int  # in the whole training
    losses: list[float] | None  # of each path, every `log_steps` steps
    lr: float


def pick_device(name: str) -> torch.device:
    """The device `name`, `auto` for a GPU if there is one; ValueError if this machine has no such."""
    if name == "auto":
        index = int(os.environ.get("LOCAL_RANK", 0))
        return torch.device("cuda", index) if torch.cuda.is_available() else torch.device("cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name!r}: this machine has no GPU that torch can use; say cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is cpu, cuda, cuda:N or auto, not {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r}: this machine has {torch.cuda.device_count()} GPUs")
    return device


def make_optimizer(net: nn.Module, config: LoopConfig, steps_per_epoch: int) -> tuple[torch.optim.Optimizer, Scheduler]:
    """timm's optimizer and its schedule, which `set_lr` applies every step."""
    optimizer = create_optimizer_v2(
        net, config.opt, config.lr * config.batch_size / 256, config.weight_decay, config.momentum
    )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        config.sched,
        config.epochs,
        decay_epochs=config.decay_epochs,
        decay_rate=config.decay_rate,
        min_lr=config.min_lr * config.batch_size / 256,
        warmup_lr=0.0,
        warmup_epochs=config.warmup_epochs,
        updates_per_epoch=steps_per_epoch,
        step_on_epochs=False,
    )
    return optimizer, scheduler


def set_lr(
    optimizer: torch.optim.Optimizer, scheduler: Scheduler, config: LoopConfig, step: int, steps_per_epoch: int
) -> float:
    """Set and return the learning rate of the step `step`, counted from 0: that in its middle, so that none has a rate
    of 0. Once it is warm, the schedule `step` falls no further than to `min_lr`."""
    middle = step + 0.5
    scheduler.step_update(middle)
    if config.sched == "step" and middle / steps_per_epoch >= config.warmup_epochs:
        for group in optimizer.param_groups:
            group["lr"] = max(group["lr"], config.min_lr * config.batch_size / 256)
    return optimizer.param_groups[0]["lr"]


def restore(
    checkpoints: Path, net: nn.Module, optimizer: torch.optim.Optimizer, ema: ModelEmaV3 | None
) -> dict[str, Any] | None:
    """Load the newest checkpoint into the given objects; all that it holds, None if there is none yet.

    ValueError if it is of another network or of other settings.
    """
    state = load_checkpoint(checkpoints)
    if state is None:
        return None
    own = {name: tensor.shape for name, tensor in net.state_dict().items()}
    for name in own.keys() | state["net"].keys():
        shape = state["net"][name].shape if name in state["net"] else None
        if shape != own.get(name):
            raise ValueError(
                f"the checkpoints in {checkpoints} are of another network: tensor {name!r} is {shape} there "
                f"and {own.get(name)} here"
            )
    if bool(state["ema"]) != bool(ema):
        raise ValueError(f"the checkpoints in {checkpoints} were made {'without' if ema else 'with'} ema_decay")
    net.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"])
    if ema:
        ema.load_state_dict(state["ema"])
    logger.info("going on from step %d", state["step"])
    return state


def clip_gradients(net: nn.Module, config: LoopConfig) -> Tensor:
    """Clip the gradients; their norm before that."""
    parameters = [p for p in net.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if config.clip is not None and config.clip_mode == "norm":
        torch.nn.utils.clip_grads_with_norm_(parameters, config.clip, norm)
    elif config.clip is not None:
        torch.nn.utils.clip_grad_value_(parameters, config.clip)
    return norm
