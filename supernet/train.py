"""Training a supernet: the step, and the loop around it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath
from typing import Any, Literal, NamedTuple

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.nn import functional as F

from distill.losses import adaptive_alpha_divergence, kl_divergence
from supernet import distributed
from supernet.atomic import write_atomically
from supernet.checkpoint import load_checkpoint, save_checkpoint
from supernet.data import Data, resize
from supernet.evaluation import accuracy, calibrated_subnet
from supernet.families import Family
from supernet.randomness import Stream, generator, torch_seed
from supernet.sampling import Attentive, Fair, Method, Path, Sandwich, Uniform
from supernet.space import Arch
from supernet.supernet import Builder, Supernet

# N images, C channels, R resolution in pixels, K classes

logger = logging.getLogger(__name__)

Distill = Callable[[Tensor, Tensor], Tensor]  # logits [N, K] of student and teacher -> loss


@dataclass(frozen=True)
class TrainConfig:
    """How a supernet is trained."""

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
    """Learning rate at the end, before scaling."""
    method: Literal["sandwich", "best_up", "worst_up", "spos", "fairnas"] = "sandwich"
    """Which subnets a step trains: the largest, random ones and the smallest (BigNAS, AlphaNet), random ones picked by
    their loss (AttentiveNAS), random ones alone (SPOS), or every operation equally often (FairNAS)."""
    random_subnets: int = 2
    """Random subnets a step, beside the largest and the smallest if the method has these; unused by fairnas."""
    trials: int = 3
    """Subnets of similar MACs that best_up and worst_up pick from."""
    macs_step: float = 25.0
    """How similar, in millions of MACs."""
    distillation: Literal["kl", "adaptive_alpha"] = "kl"
    """How subnets learn from the largest: KL divergence, or AlphaNet's adaptive alpha-divergence."""
    temperature: float = 1.0
    """Temperature of the KL divergence."""
    label_smoothing: float = 0.1
    """Part of the true label's probability that is spread over all classes, for the largest subnet."""
    drop_rate: float = 0.0
    """Dropout before the classifier, in the largest subnet."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block, growing linearly over the blocks, in the largest subnet."""
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
    calibration_images: int = 1000
    """Training images that BatchNorm is recalibrated on before a subnet is evaluated."""
    eval_epochs: int = 10
    """Epochs between evaluations of the largest, the smallest and random subnets on held-out images; 0 for none."""
    eval_random: int = 2
    """Random subnets in an evaluation, always the same ones."""
    eval_images: int = 2000
    """Held-out images that these are judged by, at most."""
    log_steps: int = 10
    """Steps between lines in metrics.jsonl."""
    checkpoint_steps: int = 200
    """Steps between checkpoints."""
    keep_checkpoints: int = 3
    """Number of the newest checkpoints kept."""
    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes a GPU if there is one."""
    seed: int = 0
    """All that is random follows from it: initial weights, order and augmentation of images, subnets, dropout."""

    def __post_init__(self):
        for name in (
            "epochs",
            "batch_size",
            "log_steps",
            "checkpoint_steps",
            "keep_checkpoints",
            "calibration_images",
            "random_subnets",
            "trials",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
        for name in ("drop_rate", "drop_path_rate", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is from 0 to below 1, not {getattr(self, name)}")
        for name in ("lr", "macs_step"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is above 0, not {getattr(self, name)}")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(f"warmup_epochs is from 0 to the {self.epochs} epochs, not {self.warmup_epochs}")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip is above 0, or none, not {self.clip}")
        if self.temperature <= 0 or (self.temperature != 1 and self.distillation != "kl"):
            raise ValueError(f"temperature is above 0, and 1 unless distillation is kl, not {self.temperature}")
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


def train_step(
    net: Supernet,
    images: Tensor,
    labels: Tensor,
    paths: Sequence[Path],
    resolution: Callable[[Arch], int],
    regularised: Builder,
    config: TrainConfig,
) -> Tensor:
    """Accumulate the gradients of all `paths` on one batch, `images` [N, C, R, R] and `labels` [N]; return each
    path's loss.

    The soft labels are the very logits that gave the teaching path its own gradient.
    """
    distill = _distillation(config)
    logits, losses = [], []
    for path in paths:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=config.amp == "bf16"):
            build = regularised if path.regularised else net.build
            output = net(resize(images, resolution(path.arch)), path.arch, build, accumulate=True)
        output = output.float()
        if path.teacher is None:
            loss = F.cross_entropy(output, labels, label_smoothing=config.label_smoothing)
        else:
            loss = distill(output, logits[path.teacher])
        loss.backward()
        logits.append(output.detach())
        losses.append(loss.detach())
    return torch.stack(losses)


def train(
    family: Family,
    net: Supernet,
    data: Data,
    config: TrainConfig,
    run_dir: FilePath,
    *,
    resume: bool = False,
    on_step: Callable[[StepResult], None] = lambda result: None,
) -> Supernet:
    """Train `net` and return the network to use: its moving average if there is one, otherwise `net` itself.

    Where `distributed.start` joined processes, all of them call this and the first one writes and calls `on_step`.

    Writes `run_dir/checkpoints/` and `run_dir/metrics.jsonl`. With `resume` it goes on from the newest readable
    checkpoint, if any, and ends in the same weights as a run that was never interrupted: bit for bit on one CPU thread,
    and on several as far as the math library keeps the order of its sums (MKL may not on a busy machine).

    Raises TrainingError, naming step and architecture, if a loss or gradient is not finite: the weights of the step
    before are not touched and the last checkpoint stays. Raises ValueError if images and network do not fit.
    """
    device = _device(config)
    if config.batch_size % distributed.world_size():
        raise ValueError(f"a batch of {config.batch_size} does not split into {distributed.world_size()} equal parts")
    net.to(device, memory_format=torch.channels_last if config.channels_last else torch.contiguous_format).train()
    method = _method(family, config)
    regularised = _regularised(family, config)
    optimizer = create_optimizer_v2(
        net, config.opt, config.lr * config.batch_size / 256, config.weight_decay, config.momentum
    )
    steps_per_epoch = data.steps_per_epoch(config.batch_size)
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
    ema = ModelEmaV3(net, config.ema_decay) if config.ema_decay else None
    run_dir.mkdir(parents=True, exist_ok=True)
    checkpoints, metrics = run_dir / "checkpoints", run_dir / "metrics.jsonl"
    start = _restore(checkpoints, net, optimizer, ema) if resume else 0
    if distributed.rank() == 0:
        _forget_after(metrics, start)
    steps = range(start, config.epochs * steps_per_epoch)
    largest_resolution = max(family.resolution(arch) for arch in (net.space.largest, net.space.smallest))
    evaluation = None
    if config.eval_epochs and distributed.rank() == 0:
        evaluation = _Evaluation.of(family, data, config, largest_resolution)
    batches = data.training_batches(
        largest_resolution, config.batch_size, config.seed, steps, distributed.rank(), distributed.world_size()
    )

    for step, (images, labels) in zip(steps, batches):
        _check_images(images, labels, family)
        images = images.to(device, non_blocking=True)
        if config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        labels = labels.to(device)
        judge = partial(_losses, net, images, labels, family.resolution, config)
        paths = method.paths(generator(config.seed, Stream.SUBNETS, step), judge)
        optimizer.zero_grad()
        with torch_seed(device, config.seed, Stream.DROPOUT, step, distributed.rank()):
            losses = train_step(net, images, labels, paths, family.resolution, regularised, config)
        distributed.average_gradients(net.parameters())
        norm = _clip(net, config)
        _check_finite(losses, norm, paths, step)
        scheduler.step_update(step + 0.5)  # the rate in the middle of the step, so that no step has a rate of 0
        optimizer.step()
        if ema:
            ema.update(net, step)

        if distributed.rank() != 0:
            continue
        done = step + 1
        is_last = done == steps.stop
        logged = losses.tolist() if done % config.log_steps == 0 or is_last else None
        lr = optimizer.param_groups[0]["lr"]
        if logged:
            _append(metrics, {"step": done, "epoch": done / steps_per_epoch, "lr": lr, "losses": logged})
        if evaluation and (is_last or done % (config.eval_epochs * steps_per_epoch) == 0):
            _append(metrics, {"step": done, "accuracy": evaluation.run(ema.module if ema else net)})
            net.train()
        if done % config.checkpoint_steps == 0 or is_last:
            state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema and ema.state_dict()}
            save_checkpoint(checkpoints, done, state, config.keep_checkpoints)
        on_step(StepResult(done, steps.stop, logged, lr))
    distributed.wait()
    return ema.module if ema else net


@dataclass(frozen=True)
class _Evaluation:
    """The largest, the smallest and a few random subnets on held-out images."""

    family: Family
    archs: dict[str, Arch]
    calibration_images: Tensor
    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, family: Family, data: Data, config: TrainConfig, resolution: int) -> _Evaluation:
        draw = generator(config.seed, Stream.EVALUATION)
        archs = {"largest": family.space.largest, "smallest": family.space.smallest}
        archs |= {f"random_{i}": family.space.sample(draw) for i in range(config.eval_random)}
        calibration_images = data.calibration_images(resolution, config.calibration_images, config.seed)
        return cls(family, archs, calibration_images, *data.images(data.holdout, resolution, config.eval_images))

    def run(self, net: Supernet) -> dict[str, float]:
        found = {}
        for name, arch in self.archs.items():
            resolution = self.family.resolution(arch)
            model = calibrated_subnet(net, arch, resolution, self.calibration_images)
            batches = zip(self.images.split(256), self.labels.split(256))
            found[name] = accuracy(model, ((resize(images, resolution), labels) for images, labels in batches))
        return found


def _device(config: TrainConfig) -> torch.device:
    if config.device == "auto":
        index = int(os.environ.get("LOCAL_RANK", 0))
        return torch.device("cuda", index) if torch.cuda.is_available() else torch.device("cpu")
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {config.device!r}: this machine has no GPU that torch can use; say cpu")
    try:
        device = torch.device(config.device)
    except RuntimeError:
        raise ValueError(f"device is cpu, cuda, cuda:N or auto, not {config.device!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {config.device!r}: this machine has {torch.cuda.device_count()} GPUs")
    return device


def _method(family: Family, config: TrainConfig) -> Method:
    space, subnets = family.space, config.random_subnets
    if config.method == "sandwich":
        return Sandwich(space, subnets)
    if config.method == "spos":
        return Uniform(space, subnets)
    if config.method == "fairnas":
        return Fair(space)
    pick = "best" if config.method == "best_up" else "worst"
    return Attentive(space, family.macs, pick, subnets, config.trials, config.macs_step * 1e6)


@torch.no_grad()
def _losses(
    net: Supernet,
    images: Tensor,
    labels: Tensor,
    resolution: Callable[[Arch], int],
    config: TrainConfig,
    archs: Sequence[Arch],
) -> list[float]:
    """Cross-entropy of subnets on the joint batch of all processes, without gradient."""
    losses = []
    for arch in archs:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=config.amp == "bf16"):
            output = net(resize(images, resolution(arch)), arch)
        losses.append(F.cross_entropy(output.float(), labels))
    return distributed.average(torch.stack(losses)).tolist()


def _distillation(config: TrainConfig) -> Distill:
    if config.distillation == "kl":
        return partial(kl_divergence, temperature=config.temperature)
    return adaptive_alpha_divergence


def _regularised(family: Family, config: TrainConfig) -> Builder:
    if not (config.drop_rate or config.drop_path_rate):
        return family.build
    return partial(family.build, drop_rate=config.drop_rate, drop_path_rate=config.drop_path_rate)


def _restore(checkpoints: FilePath, net: Supernet, optimizer: torch.optim.Optimizer, ema: ModelEmaV3 | None) -> int:
    """Load the newest checkpoint into the given objects; the number of steps done, 0 without one."""
    state = load_checkpoint(checkpoints)
    if state is None:
        return 0
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
    return state["step"]


def _clip(net: Supernet, config: TrainConfig) -> Tensor:
    """Clip the gradients; their norm before that."""
    parameters = [p for p in net.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if config.clip is not None and config.clip_mode == "norm":
        torch.nn.utils.clip_grads_with_norm_(parameters, config.clip, norm)
    elif config.clip is not None:
        torch.nn.utils.clip_grad_value_(parameters, config.clip)
    return norm


def _check_finite(losses: Tensor, norm: Tensor, paths: Sequence[Path], step: int) -> None:
    finite = torch.isfinite(torch.cat([losses, norm[None]])).tolist()
    if all(finite):
        return
    advice = "lower lr, lengthen warmup_epochs or set clip"
    for path, loss, is_finite in zip(paths, losses.tolist(), finite):
        if not is_finite:
            raise TrainingError(f"the loss is {loss} in step {step + 1} for {path.arch!r}; {advice}")
    raise TrainingError(
        f"the gradient's norm is {norm.item()} in step {step + 1}, for one of {[path.arch for path in paths]}; {advice}"
    )


def _check_images(images: Tensor, labels: Tensor, family: Family) -> None:
    if labels.min() < 0 or labels.max() >= family.num_classes:
        raise ValueError(f"labels are {labels.min()} to {labels.max()}, but there are {family.num_classes} classes")
    if images.dim() != 4 or images.shape[1] != family.in_chans or not images.is_floating_point():
        raise ValueError(
            f"a batch of images is {list(images.shape)} of {images.dtype}, but this space takes floating point "
            f"[N, {family.in_chans}, R, R]"
        )


def _append(metrics: FilePath, line: dict[str, Any]) -> None:
    with metrics.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _forget_after(metrics: FilePath, step: int) -> None:
    """Drop lines of steps after `step`, which are about to be done again, and a line that was cut off."""
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text().splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except json.JSONDecodeError:
            break
        kept.append(line + "\n")
    with write_atomically(metrics) as temporary:
        temporary.write_text("".join(kept))
