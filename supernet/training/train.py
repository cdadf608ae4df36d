"""Training a supernet: the step, and the loop around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path as FilePath
from typing import Literal, NamedTuple

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from distill.losses import adaptive_alpha_divergence, kl_divergence
from distill.untouched import untouched
from supernet.artifacts.ownership import owned
from supernet.evaluation import accuracy, calibrated_subnet
from supernet.families import Family
from supernet.space import Arch, SearchSpace
from supernet.supernet import Builder, Supernet
from supernet.training.data import Data, resize
from supernet.training.loop import Loop, LoopConfig, StepResult, autocast
from supernet.training.prioritized import PrioritizedPaths
from supernet.training.randomness import Stream, generator
from supernet.training.sampling import Attentive, Fair, Method, Path, Sandwich, Step, Uniform

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
    calibration_images: int | None = None
    """Training images that BatchNorm is recalibrated on before a subnet is evaluated; if None, 1000, or one a class if
    there are more classes."""
    eval_random: int = 2
    """Random subnets in an evaluation, always the same ones."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("accumulation", "calibration_images", "random_subnets", "trials"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
        if self.macs_step <= 0:
            raise ValueError(f"macs_step is above 0, not {self.macs_step}")
        if self.temperature <= 0 or (self.temperature != 1 and self.distillation != "kl"):
            raise ValueError(f"temperature is above 0, and 1 unless distillation is kl, not {self.temperature}")

    def images_to_calibrate(self, num_classes: int) -> int:
        """`calibration_images`, or what stands for None."""
        return self.calibration_images or max(1000, num_classes)


class Outcome(NamedTuple):
    """What came out of the paths of a step."""

    losses: Tensor  # [paths]
    logits: list[Tensor]  # [N, K] of each path, without gradient


@dataclass(frozen=True)
class TrainStep:
    """Gives `net` the gradients of a step: `train_step(images, labels, paths)`.

    `resolution` is that of an architecture's images, `regularised` builds the modules of paths with dropout, `teacher`
    is the frozen network of those that name an external one. `calls` say how architectures are run otherwise than by
    `functional_call`.
    """

    net: Supernet
    config: TrainConfig
    resolution: Callable[[Arch], int]
    regularised: Builder
    teacher: nn.Module | None = None
    calls: Mapping[Arch, Call] = field(default_factory=dict)

    def __call__(self, images: Tensor, labels: Tensor, paths: Sequence[Path]) -> Outcome:
        """Accumulate the gradients of all `paths` on a batch, `images` [N, C, R, R] and `labels` [N]: the mean over
        `config.accumulation` equal parts of it."""
        count = self.config.accumulation
        parts = [self._part(*part, paths) for part in zip(images.chunk(count), labels.chunk(count))]
        losses = torch.stack([part.losses for part in parts]).mean(0)
        return Outcome(losses, [torch.cat(logits) for logits in zip(*(part.logits for part in parts))])

    def _part(self, images: Tensor, labels: Tensor, paths: Sequence[Path]) -> Outcome:
        """The same on one of the parts. A path's soft labels are the very logits that gave its teacher a gradient."""
        config = self.config
        distill = _distillation(config)
        external = None
        if any(path.teacher == "external" for path in paths):
            with torch.no_grad(), autocast(config, images.device):
                external = untouched(self.teacher, images).float()
        logits: list[Tensor] = []
        losses = []
        for path in paths:
            with torch.set_grad_enabled(path.learns):
                output = self.logits(path.arch, images, regularised=path.regularised, accumulate=path.learns)
            loss = output.new_zeros(())
            if path.label_weight:
                loss = path.label_weight * F.cross_entropy(output, labels, label_smoothing=config.label_smoothing)
            if path.teacher is not None and path.teacher_weight:
                soft_labels = external if path.teacher == "external" else logits[path.teacher]
                loss = loss + path.teacher_weight * distill(output, soft_labels)
            if path.learns:
                (loss / config.accumulation).backward()
            logits.append(output.detach())
            losses.append(loss.detach())
        return Outcome(torch.stack(losses), logits)

    def logits(self, arch: Arch, images: Tensor, *, regularised: bool = False, accumulate: bool = False) -> Tensor:
        """Those [N, K] of the subnet `arch` on `images`, which are resized to its resolution."""
        build = self.regularised if regularised else self.net.build
        call = self.calls.get(arch, functional_call)
        with autocast(self.config, images.device):
            output = self.net(resize(images, self.resolution(arch)), arch, build, accumulate=accumulate, call=call)
        return output.float()


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
    on_begin: Callable[[], None] = lambda: None,
) -> Supernet:
    """Train `net` and return the network to use: its moving average if there is one, otherwise `net` itself.

    `method` chooses the subnets of each step, by default the one that `config` names. `teacher` gives the soft labels
    [N, K] of paths with an external teacher; it gets the images of the step, which have the space's largest
    resolution, and is in eval mode.

    Writes, resumes, joins processes and raises as `supernet.training.loop.Loop` does: TrainingError, naming step and
    architecture, if a loss or gradient is not finite or the training has diverged. ValueError if images and network do
    not fit, or if another process trains into `run_dir`.
    """
    with owned(run_dir):
        method = method or make_method(family, config)
        net.statistics_of = None  # before the moving average copies it
        resolution = max(family.resolution(arch) for arch in (net.space.largest, net.space.smallest))
        loop = Loop(
            net,
            data,
            config,
            run_dir,
            _Evaluation(family, method.space, data, config, resolution),
            kept={"method": method},
            parts=config.accumulation,
            resume=resume,
            on_step=on_step,
            on_begin=on_begin,
        )
        if teacher is not None:
            loop.place(teacher).eval()
        recurring = (method.space.largest, method.space.smallest) if config.compile else ()
        calls = {arch: torch.compile(functional_call, dynamic=False) for arch in recurring}
        train_step = TrainStep(net, config, family.resolution, _regularised(family, config), teacher, calls)

        for number, images, labels in loop.batches(resolution, family.num_classes):
            _check_images(images, family)
            epoch, step_of_epoch = divmod(number, loop.steps_per_epoch)
            progress = number / loop.steps.stop
            if step_of_epoch == 0:
                method.start_epoch(net, _companions(net, loop.optimizer, loop.ema), progress)
            draw = generator(config.seed, Stream.SUBNETS, number)
            step = Step(number, epoch, progress, draw, net, images, labels, train_step.logits, loop.lr)
            paths = method.paths(step)
            with loop.seeded(number):
                losses, logits = train_step(images, labels, paths)
            loop.update(number, losses, [path.arch for path in paths])
            method.finish(step, paths, logits)
            loop.finish(number, {"losses": losses})
        return loop.result


@dataclass(frozen=True)
class _Evaluation:
    """The accuracy of the largest, the smallest and a few random subnets on held-out images."""

    family: Family
    space: SearchSpace
    data: Data
    config: TrainConfig
    resolution: int

    @cached_property
    def archs(self) -> dict[str, Arch]:
        draw = generator(self.config.seed, Stream.EVALUATION)
        random = {f"random_{i}": self.space.sample(draw) for i in range(self.config.eval_random)}
        return {"largest": self.space.largest, "smallest": self.space.smallest, **random}

    @cached_property
    def calibration_images(self) -> Tensor:
        count = self.config.images_to_calibrate(self.family.num_classes)
        return self.data.calibration_images(self.resolution, count, self.config.seed)

    @cached_property
    def holdout(self) -> tuple[Tensor, Tensor]:
        return self.data.images(self.data.holdout, self.resolution, self.config.eval_images)

    def __call__(self, net: Supernet) -> dict[str, float]:
        found = {}
        for name, arch in self.archs.items():
            resolution = self.family.resolution(arch)
            model = calibrated_subnet(net, arch, resolution, self.calibration_images)
            batches = zip(*(tensor.split(256) for tensor in self.holdout))
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


def _check_images(images: Tensor, family: Family) -> None:
    if images.dim() != 4 or images.shape[1] != family.in_chans or not images.is_floating_point():
        raise ValueError(
            f"a batch of images is {list(images.shape)} of {images.dtype}, but this space takes floating point "
            f"[N, {family.in_chans}, R, R]"
        )
