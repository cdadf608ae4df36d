"""Training a tiny model by network augmentation: what comes out is the plain model, with no cost at inference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from distill.objective import Objective
from netaug.augmentation import Augmentation, augment
from netaug.method import NetAug
from supernet.artifacts.ownership import owned
from supernet.artifacts.subnet import Subnet
from supernet.artifacts.subnet_config import SubnetConfig
from supernet.channels import widen
from supernet.evaluation import calibrated_subnet
from supernet.supernet import Supernet
from supernet.training.cohort import LABELS_ALONE
from supernet.training.data import ImageData
from supernet.training.execution import DEFAULT, Execution
from supernet.training.loop import StepResult
from supernet.training.loop.config import LoopConfig
from supernet.training.standalone import ModelJob, prepare_job
from supernet.training.step import TrainConfig
from supernet.training.train import train


@dataclass(frozen=True)
class NetAugConfig:
    """How a tiny model is augmented."""

    r: float = 3.0
    """How many times as wide, and as expanded, the widest network is."""
    s: int = 2
    """Equal steps from the tiny model to the widest network."""
    widths: tuple[float, ...] = ()
    """Factors of the widths, in the place of those by r and s, such as 1 1.8 2.6."""
    expansions: tuple[float, ...] = ()
    """Factors of the expansions inside blocks, in the place of those by r and s, such as 1 1.6 2.2 2.8."""
    weight: float = 1.0
    """Weight of the wider network's loss."""
    width_until: float = 0.5
    """Part of the training in which networks are wider; after it they are only more expanded."""
    sort_channels: bool = True
    """Put the most important channels into the tiny model before every epoch in which networks are wider."""
    calibration_images: int = 1000
    """Training images that the tiny model's BatchNorm is recalibrated on at the end."""

    def __post_init__(self):
        if self.weight < 0 or not 0 <= self.width_until <= 1 or self.calibration_images < 1:
            raise ValueError(
                "weight is 0 or more, width_until a part of the training, and calibration_images at least 1, not "
                f"{self.weight}, {self.width_until} and {self.calibration_images}"
            )


@dataclass(frozen=True)
class NetAugJob(ModelJob):
    """All that defines the training of one model by network augmentation; of the losses, labels, kl and those by
    companions, which see the leading channels of the wider networks as well."""

    netaug: NetAugConfig = dataclasses.field(default_factory=NetAugConfig)

    def __post_init__(self):
        super().__post_init__()
        objective = self.objective
        if objective.adaptive_alpha or objective.feature_losses or objective.mutual:
            raise ValueError(
                "network augmentation takes the losses labels, kl and those by companions; set the other weights to 0"
            )
        if not (objective.labels or objective.kl):
            raise ValueError("network augmentation learns from labels or from kl: set one of their weights above 0")


def run_netaug_job(
    job: NetAugJob,
    directory: Path,
    *,
    resume: bool = False,
    on_step: Callable[[StepResult], None] = lambda result: None,
) -> Subnet:
    """Train the model that `job` describes, as `supernet.training.standalone.run_model_job` does, by network
    augmentation."""
    with owned(directory):
        data, [(own, family, arch, model)], teacher, _, begin = prepare_job(job, directory, resume)
        config = job.netaug
        augmentation = augment(
            family, config.r, config.s, arch=arch, widths=config.widths or None, expansions=config.expansions or None
        )
        model = train_netaug(
            augmentation,
            model,
            data,
            job.train,
            directory,
            config,
            objective=job.objective,
            teacher=teacher,
            execution=job.execution,
            resume=resume,
            on_step=on_step,
            on_begin=begin,
        )
    return Subnet(model, SubnetConfig.of(own.space, own.space_options, arch, data))


def train_netaug(
    augmentation: Augmentation,
    tiny: nn.Module,
    data: ImageData,
    config: LoopConfig,
    run_dir: Path,
    netaug: NetAugConfig,
    *,
    objective: Objective = LABELS_ALONE,
    teacher: nn.Module | None = None,
    execution: Execution = DEFAULT,
    resume: bool = False,
    on_step: Callable[[StepResult], None] = lambda result: None,
    on_begin: Callable[[], None] = lambda: None,
) -> nn.Module:
    """The model `tiny`, which `augmentation` is around, trained from the weights that it has; on the CPU, in eval mode.

    The loop is `supernet.training.train.train` with the method `NetAug`. At the end the tiny model is taken out and its
    BatchNorm recalibrated. It has the state-dict keys and shapes of `tiny`. Of the losses of `objective`, which the
    wider networks have as well, those of companions are of the largest network's channels, of which the others see the
    leading ones; channels within a block, which are sorted, are none for companions to see.
    """
    net = initial_supernet(augmentation, tiny, config.seed)
    method = NetAug(
        augmentation.space,
        [inside.channels for inside in augmentation.inside] if netaug.sort_channels else (),
        netaug.weight,
        netaug.width_until,
        objective.labels,
        objective.kl,
        bool(objective.connectors),
    )
    settings = TrainConfig(
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(LoopConfig)},
        temperature=objective.temperature if objective.kl or objective.self_distillation else 1.0,
        calibration_images=netaug.calibration_images,
    )
    net = train(
        augmentation.family,
        net,
        data,
        settings,
        run_dir,
        dataclasses.replace(execution, eval_random=0),
        method=method,
        teacher=teacher,
        beside=objective,
        resume=resume,
        on_step=on_step,
        on_begin=on_begin,
    )
    resolution = augmentation.input_size
    images = data.calibration_images(resolution, netaug.calibration_images, config.seed)
    model = calibrated_subnet(net, augmentation.space.smallest, resolution, images)
    return model.to("cpu", memory_format=torch.contiguous_format)


def initial_supernet(augmentation: Augmentation, tiny: nn.Module, seed: int) -> Supernet:
    """A supernet whose smallest subnet has the weights of `tiny`; those of the other channels are drawn from `seed`.

    `tiny` itself is made wider, and of no more use.
    """
    net = augmentation.family.supernet(seed)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        net.load_state_dict(widen(tiny, augmentation.sizes(augmentation.space.largest)).state_dict())
    return net
