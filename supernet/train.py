"""Training a supernet: the step, and the loop around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath
from typing import Literal

import torch
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.nn import functional as F

from distill.losses import adaptive_alpha_divergence, kl_divergence
from supernet import distributed
from supernet.checkpoint import save_checkpoint
from supernet.data import Data, resize
from supernet.evaluation import accuracy, calibrated_subnet
from supernet.families import Family
from supernet.loop import (
    LoopConfig,
    StepResult,
    TrainingError,
    append_metrics,
    clip_gradients,
    forget_after,
    make_optimizer,
    pick_device,
    restore,
)
from supernet.randomness import Stream, generator, torch_seed
from supernet.sampling import Attentive, Fair, Method, Path, Sandwich, Uniform
from supernet.space import Arch
from supernet.supernet import Builder, Supernet

# N images, C channels, R resolution in pixels, K classes

Distill = Callable[[Tensor, Tensor], Tensor]  # logits [N, K] of student and teacher -> loss


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """How a supernet is trained."""

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
    calibration_images: int = 1000
    """Training images that BatchNorm is recalibrated on before a subnet is evaluated."""
    eval_random: int = 2
    """Random subnets in an evaluation, always the same ones."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("calibration_images", "random_subnets", "trials"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
        if self.macs_step <= 0:
            raise ValueError(f"macs_step is above 0, not {self.macs_step}")
        if self.temperature <= 0 or (self.temperature != 1 and self.distillation != "kl"):
            raise ValueError(f"temperature is above 0, and 1 unless distillation is kl, not {self.temperature}")


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
    device = pick_device(config.device)
    if config.batch_size % distributed.world_size():
        raise ValueError(f"a batch of {config.batch_size} does not split into {distributed.world_size()} equal parts")
    net.to(device, memory_format=torch.channels_last if config.channels_last else torch.contiguous_format).train()
    method = _method(family, config)
    regularised = _regularised(family, config)
    steps_per_epoch = data.steps_per_epoch(config.batch_size)
    optimizer, scheduler = make_optimizer(net, config, steps_per_epoch)
    ema = ModelEmaV3(net, config.ema_decay) if config.ema_decay else None
    run_dir.mkdir(parents=True, exist_ok=True)
    checkpoints, metrics = run_dir / "checkpoints", run_dir / "metrics.jsonl"
    state = restore(checkpoints, net, optimizer, ema) if resume else None
    start = state["step"] if state else 0
    if distributed.rank() == 0:
        forget_after(metrics, start)
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
        norm = clip_gradients(net, config)
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
            append_metrics(metrics, {"step": done, "epoch": done / steps_per_epoch, "lr": lr, "losses": logged})
        if evaluation and (is_last or done % (config.eval_epochs * steps_per_epoch) == 0):
            append_metrics(metrics, {"step": done, "accuracy": evaluation.run(ema.module if ema else net)})
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
