"""Training a supernet: the step, and the loop around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.func import functional_call
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
    clip_gradients,
    make_optimizer,
    pick_device,
    restore,
    set_lr,
)
from supernet.metrics import Metrics
from supernet.prioritized import PrioritizedPaths
from supernet.randomness import Stream, generator, torch_seed
from supernet.sampling import Attentive, Fair, Method, Path, Sandwich, Step, Uniform
from supernet.space import Arch, SearchSpace
from supernet.supernet import Builder, Supernet

# N images, C channels, R resolution in pixels, K classes

Call = Callable[[nn.Module, Mapping[str, Tensor], tuple[Tensor]], Tensor]
Distill = Callable[[Tensor, Tensor], Tensor]  # logits [N, K] of student and teacher -> loss


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """How a supernet is trained."""

    method: Literal["sandwich", "best_up", "worst_up", "spos", "fairnas", "cream", "progressive"] = "sandwich"
    """Which subnets a step trains: the largest, random ones and the smallest (BigNAS, AlphaNet), random ones picked by
    their loss (AttentiveNAS), random ones alone (SPOS), every operation equally often (FairNAS), a random one taught by
    the best so far (Cream), or ever smaller ones (Once-for-All), which a recipe with phases does."""
    random_subnets: int = 2
    """Random subnets a step, beside the largest and the smallest if the method has these; unused by fairnas."""
    trials: int = 3
    """Subnets of similar MACs that best_up and worst_up pick from."""
    macs_step: float = 25.0
    """How similar, in millions of MACs."""
    board_epoch: int = 20
    """Epoch, counted from 0, from which cream keeps the best paths, to teach others."""
    matching_steps: int = 200
    """Steps between updates of cream's learned choice of the teacher."""
    distillation: Literal["kl", "adaptive_alpha"] = "kl"
    """How subnets learn from the largest: KL divergence, or AlphaNet's adaptive alpha-divergence."""
    temperature: float = 1.0
    """Temperature of the KL divergence."""
    compile: bool = False
    """Compile the largest and the smallest subnet, which recur in a sandwich; takes minutes, pays in long trainings."""
    accumulation: int = 1
    """Equal parts of a batch that run one after another, to take less memory; BatchNorm sees a part at a time."""
    calibration_images: int = 1000
    """Training images that BatchNorm is recalibrated on before a subnet is evaluated."""
    eval_random: int = 2
    """Random subnets in an evaluation, always the same ones."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("accumulation", "calibration_images", "random_subnets", "trials"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
        if self.macs_step <= 0:
            raise ValueError(f"macs_step is above 0, not {self.macs_step}")
        if self.temperature <= 0 or (self.temperature != 1 and self.distillation != "kl"):
            raise ValueError(f"temperature is above 0, and 1 unless distillation is kl, not {self.temperature}")


class Outcome(NamedTuple):
    """What came out of the paths of a step."""

    losses: Tensor  # [paths]
    logits: list[Tensor]  # [N, K] of each path, without gradient


def train_step(
    net: Supernet,
    images: Tensor,
    labels: Tensor,
    paths: Sequence[Path],
    resolution: Callable[[Arch], int],
    regularised: Builder,
    config: TrainConfig,
    teacher: nn.Module | None = None,
    share: float = 1.0,
    calls: Mapping[Arch, Call] = MappingProxyType({}),
) -> Outcome:
    """Accumulate the gradients of all `paths` on one batch, `images` [N, C, R, R] and `labels` [N], times `share`.

    Where a path of the step teaches, the soft labels are the very logits that gave it its own gradient. `teacher` is
    the frozen network of those paths that name an external one. `calls` say how architectures are run otherwise than
    by `functional_call`.
    """
    distill = _distillation(config)
    precision = partial(torch.autocast, images.device.type, torch.bfloat16, enabled=config.amp == "bf16")
    external = None
    if any(path.teacher == "external" for path in paths):
        with torch.no_grad(), precision():
            external = teacher(images).float()
    logits: list[Tensor] = []
    losses = []
    for path in paths:
        with torch.set_grad_enabled(path.learns), precision():
            build = regularised if path.regularised else net.build
            call = calls.get(path.arch, functional_call)
            output = net(resize(images, resolution(path.arch)), path.arch, build, accumulate=path.learns, call=call)
        output = output.float()
        loss = output.new_zeros(())
        if path.label_weight:
            loss = path.label_weight * F.cross_entropy(output, labels, label_smoothing=config.label_smoothing)
        if path.teacher is not None and path.teacher_weight:
            soft_labels = external if path.teacher == "external" else logits[path.teacher]
            loss = loss + path.teacher_weight * distill(output, soft_labels)
        if path.learns:
            (share * loss).backward()
        logits.append(output.detach())
        losses.append(loss.detach())
    return Outcome(torch.stack(losses), logits)


def train(
    family: Family,
    net: Supernet,
    data: Data,
    config: TrainConfig,
    run_dir: FilePath,
    *,
    method: Method | None = None,
    teacher: nn.Module | None = None,
    resume: bool = False,
    on_step: Callable[[StepResult], None] = lambda result: None,
) -> Supernet:
    """Train `net` and return the network to use: its moving average if there is one, otherwise `net` itself.

    `method` chooses the subnets of each step, by default the one that `config` names. `teacher` gives the soft labels
    [N, K] of paths with an external teacher; it gets the images of the step, which have the space's largest
    resolution, and is in eval mode. Where `distributed.start` joined processes, all of them call this and the first
    one writes and calls `on_step`.

    Writes `run_dir/checkpoints/` and `run_dir/metrics.jsonl`. With `resume` it goes on from the newest readable
    checkpoint, if any, and ends in the same weights as a run that was never interrupted: bit for bit on one CPU thread,
    and on several as far as the math library keeps the order of its sums (MKL may not on a busy machine).

    Raises TrainingError, naming step and architecture, if a loss or gradient is not finite: the weights of the step
    before are not touched and the last checkpoint stays. Raises ValueError if images and network do not fit.
    """
    device = pick_device(config.device)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    processes = distributed.world_size()
    if config.batch_size % (processes * config.accumulation):
        raise ValueError(
            f"a batch of {config.batch_size} does not split into {processes * config.accumulation} equal parts, for "
            f"{processes} processes that do {config.accumulation} one after another"
        )
    net.to(device, memory_format=memory_format).train()
    if teacher is not None:
        teacher.to(device, memory_format=memory_format).eval()
    method = method or make_method(family, config)
    regularised = _regularised(family, config)
    recurring = (method.space.largest, method.space.smallest) if config.compile else ()
    calls = {arch: torch.compile(functional_call, dynamic=False) for arch in recurring}
    steps_per_epoch = data.steps_per_epoch(config.batch_size)
    optimizer, scheduler = make_optimizer(net, config, steps_per_epoch)
    ema = ModelEmaV3(net, config.ema_decay) if config.ema_decay else None
    run_dir.mkdir(parents=True, exist_ok=True)
    checkpoints = run_dir / "checkpoints"
    state = restore(checkpoints, net, optimizer, ema) if resume else None
    start = 0
    if state:
        start = state["step"]
        method.load_state_dict(state["method"])
    metrics = Metrics(run_dir, start, config.tensorboard) if distributed.rank() == 0 else None
    steps = range(start, config.epochs * steps_per_epoch)
    largest_resolution = max(family.resolution(arch) for arch in (net.space.largest, net.space.smallest))
    evaluation = None
    if config.eval_epochs and distributed.rank() == 0 and len(steps):
        evaluation = _Evaluation.of(family, method.space, data, config, largest_resolution)
    batches = data.training_batches(
        largest_resolution, config.batch_size, config.seed, steps, distributed.rank(), processes
    )

    for number, (images, labels) in zip(steps, batches):
        _check_images(images, labels, family)
        images = images.to(device, memory_format=memory_format, non_blocking=True)
        labels = labels.to(device)
        lr = set_lr(optimizer, scheduler, config, number, steps_per_epoch)
        if number % steps_per_epoch == 0:
            method.start_epoch(net, _companions(net, optimizer, ema), number / steps.stop)
        step = Step(
            number,
            number // steps_per_epoch,
            number / steps.stop,
            generator(config.seed, Stream.SUBNETS, number),
            net,
            images,
            labels,
            partial(_logits, net, family.resolution, config),
            lr,
        )
        paths = method.paths(step)
        optimizer.zero_grad()
        parts = []
        with torch_seed(device, config.seed, Stream.DROPOUT, number, distributed.rank()):
            for part in zip(images.chunk(config.accumulation), labels.chunk(config.accumulation)):
                share = 1 / config.accumulation
                outcome = train_step(net, *part, paths, family.resolution, regularised, config, teacher, share, calls)
                parts.append(outcome)
        losses = torch.stack([part.losses for part in parts]).mean(0)
        distributed.average_gradients(net.parameters())
        norm = clip_gradients(net, config)
        _check_finite(losses, norm, paths, number)
        optimizer.step()
        if ema:
            ema.update(net, number)
        method.finish(step, paths, [torch.cat(logits) for logits in zip(*(part.logits for part in parts))])

        if distributed.rank() != 0:
            continue
        done = number + 1
        is_last = done == steps.stop
        logged = losses.tolist() if done % config.log_steps == 0 or is_last else None
        if logged:
            metrics.append({"step": done, "epoch": done / steps_per_epoch, "lr": lr, "losses": logged})
        if evaluation and (is_last or done % (config.eval_epochs * steps_per_epoch) == 0):
            metrics.append({"step": done, "accuracy": evaluation.run(ema.module if ema else net)})
            net.train()
        if done % config.checkpoint_steps == 0 or is_last:
            state = {
                "net": net.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": ema and ema.state_dict(),
                "method": method.state_dict(),
            }
            save_checkpoint(checkpoints, done, state, config.keep_checkpoints)
        on_step(StepResult(done, steps.stop, logged, lr))
    if metrics:
        metrics.close()
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
    def of(cls, family: Family, space: SearchSpace, data: Data, config: TrainConfig, resolution: int) -> _Evaluation:
        draw = generator(config.seed, Stream.EVALUATION)
        archs = {"largest": space.largest, "smallest": space.smallest}
        archs |= {f"random_{i}": space.sample(draw) for i in range(config.eval_random)}
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


def make_method(family: Family, config: TrainConfig) -> Method:
    """The method that `config` names, with its settings."""
    space, subnets = family.space, config.random_subnets
    if config.method == "sandwich":
        return Sandwich(space, subnets)
    if config.method == "spos":
        return Uniform(space, subnets)
    if config.method == "fairnas":
        return Fair(space)
    if config.method == "cream":
        return PrioritizedPaths(
            space,
            family.macs,
            num_classes=family.num_classes,
            distill=_distillation(config),
            start_epoch=config.board_epoch,
            update_steps=config.matching_steps,
        )
    if config.method == "progressive":
        raise ValueError("the method progressive needs a job with phases, which a recipe sets, such as once_for_all")
    pick = "best" if config.method == "best_up" else "worst"
    return Attentive(space, family.macs, pick, subnets, config.trials, config.macs_step * 1e6)


def _logits(
    net: Supernet, resolution: Callable[[Arch], int], config: TrainConfig, arch: Arch, images: Tensor
) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.amp == "bf16"):
        return net(resize(images, resolution(arch)), arch).float()


def _companions(net: Supernet, optimizer: torch.optim.Optimizer, ema: ModelEmaV3 | None) -> list[dict[str, Tensor]]:
    """What belongs to the parameters and is shaped like them: the optimizer's state, and the moving average."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, parameter in net.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                found.setdefault(key, {})[name] = value
    average = [dict([*ema.module.named_parameters(), *ema.module.named_buffers()])] if ema else []
    return [*found.values(), *average]


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
