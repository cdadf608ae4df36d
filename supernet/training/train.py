"""Training a supernet: the loop around the step, and its evaluations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path as FilePath

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.func import functional_call

from supernet.artifacts.ownership import owned
from supernet.evaluation import accuracy, calibrated_subnet
from supernet.families import Family
from supernet.space import Arch, SearchSpace
from supernet.supernet import Builder, Supernet
from supernet.training.data import Data, resize
from supernet.training.loop import Loop, StepResult
from supernet.training.prioritized import PrioritizedPaths
from supernet.training.randomness import Stream, generator
from supernet.training.sampling import Attentive, Fair, Method, Sandwich, Step, Uniform
from supernet.training.step import TrainConfig, TrainStep, distillation

# N images, C channels, R resolution in pixels, K classes


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
            distill=distillation(config),
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
