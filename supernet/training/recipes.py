"""Training recipes: functions that return a whole job, each setting of which can be overridden.

`digits` is the small one for every method, `--recipe digits --method fairnas` for example, but progressive shrinking,
which has `digits_shrinking`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from supernet.artifacts.runs import Job
from supernet.training.data import DataConfig
from supernet.training.execution import Execution
from supernet.training.methods.progressive import ONCE_FOR_ALL, Phase
from supernet.training.step import TrainConfig


def digits() -> Job:
    """scikit-learn's handwritten digits on a laptop: about two minutes on 2 cores."""
    return Job(
        space="mobilenet_v3_micro",
        data=DataConfig(
            dataset="digits",
            holdout=0.2,
            scale=(0.7, 1.0),
            ratio=(0.85, 1.18),
            hflip=0.0,
            color_jitter=0.0,
            crop_pct=1.0,
        ),
        train=TrainConfig(
            epochs=36,
            batch_size=64,
            lr=0.4,
            weight_decay=1e-4,
            ema_decay=0.99,
            calibration_images=500,
        ),
        execution=Execution(workers=0),
    )


def digits_shrinking() -> Job:
    """Progressive shrinking on the digits, in the phases of Once-for-All: about three minutes on 2 cores."""
    job = digits()
    widths = {"expand_ratio": 3, "width": 3}
    phases = (
        Phase("largest", 18),
        Phase("kernel_size", 8, 0.4, 1, 1, {"kernel_size": 2}),
        Phase("depth_1", 3, 0.1, 0, 2, {"kernel_size": 2, "depth": 2}),
        Phase("depth_2", 8, 0.2, 1, 2, {"kernel_size": 2, "depth": 3}),
        Phase("width_1", 3, 0.1, 0, 4, {"kernel_size": 2, "depth": 3, "expand_ratio": 2, "width": 2}),
        Phase("width_2", 14, 0.4, 1, 4, {"kernel_size": 2, "depth": 3, **widths}),
    )
    train = dataclasses.replace(job.train, method="progressive", epochs=54, lr=0.4)
    return dataclasses.replace(job, train=train, phases=phases)


def cifar10() -> Job:
    """Small photographs as a folder or tar files (give --root and --test-root); hours on a GPU."""
    return Job(
        space="mobilenet_v3_micro",
        data=DataConfig(dataset="folder", scale=(0.4, 1.0), color_jitter=0.0, crop_pct=1.0),
        train=TrainConfig(epochs=100, batch_size=256, lr=0.2, weight_decay=1e-4, clip=5.0),
    )


def text() -> Job:
    """Texts with classes, of a table (give --root), by small BERT-like encoders: a quarter of an hour on a core for
    a few thousand news."""
    return Job(
        space="text_encoder",
        data=DataConfig(dataset="text"),
        train=TrainConfig(
            epochs=12,
            batch_size=32,
            opt="adamw",
            lr=1e-3,
            scale_lr=False,
            weight_decay=0.05,
            warmup_epochs=1,
            drop_rate=0.1,
            clip=1.0,
            ema_decay=0.99,
            label_weight=1.0,
        ),
        execution=Execution(workers=0),
    )


def alphanet() -> Job:
    """AlphaNet (arXiv 2102.07954): adaptive alpha-divergence, the settings of AttentiveNAS; days on many GPUs."""
    return Job(
        space="alphanet",
        data=DataConfig(dataset="folder"),
        train=TrainConfig(
            epochs=360,
            batch_size=4096,
            lr=0.1,
            weight_decay=1e-5,
            random_subnets=2,
            distillation="adaptive_alpha",
            label_smoothing=0.1,
            drop_rate=0.2,
            drop_path_rate=0.2,
            clip=1.0,
            clip_mode="value",
            calibration_images=4096,
        ),
        execution=Execution(amp="bf16"),
    )


def attentive_nas() -> Job:
    """AttentiveNAS (arXiv 2011.09011): WorstUp sampling and KL distillation; days on many GPUs."""
    job = alphanet()
    train = dataclasses.replace(job.train, method="worst_up", distillation="kl", trials=3, macs_step=25.0)
    return dataclasses.replace(job, train=train)


def bignas() -> Job:
    """BigNAS (arXiv 2003.11142): the sandwich rule, a rate that falls by steps to a constant ending of 5 %; days on
    many GPUs.

    The number of epochs and the search space are AlphaNet's. AutoAugment is timm's `original`, and residual blocks do
    not start from zero as the paper's do.
    """
    job = alphanet()
    train = dataclasses.replace(
        job.train,
        opt="rmsproptf",
        lr=0.256 / 16,
        sched="step",
        decay_rate=0.97,
        decay_epochs=2.4,
        min_lr=0.05 * 0.256 / 16,
        distillation="kl",
        drop_path_rate=0.0,
        clip=None,
        clip_mode="norm",
    )
    return dataclasses.replace(job, data=dataclasses.replace(job.data, auto_augment="original"), train=train)


def once_for_all() -> Job:
    """Once-for-All (arXiv 1908.09791): progressive shrinking in six phases; weeks on several GPUs."""
    return Job(
        space="ofa_mobilenet_v3",
        space_options='{"kernel_transform": true}',
        data=DataConfig(dataset="folder"),
        train=TrainConfig(
            method="progressive",
            epochs=590,
            batch_size=2048,
            lr=2.6 / 8,
            weight_decay=3e-5,
            warmup_epochs=0,
            label_smoothing=0.1,
            drop_rate=0.1,
        ),
        phases=ONCE_FOR_ALL,
    )


def cream() -> Job:
    """Cream (arXiv 2010.15821): one random path a step, taught by the best so far; days on several GPUs."""
    return Job(
        space="ofa_mobilenet_v3",
        data=DataConfig(dataset="folder"),
        train=TrainConfig(
            method="cream",
            epochs=120,
            batch_size=1024,
            lr=0.25,
            sched="poly",
            decay_rate=1.0,
            weight_decay=4e-5,
            warmup_epochs=0,
            board_epoch=20,
            matching_steps=200,
            ema_decay=0.9998,
        ),
    )


def prune() -> Job:
    """Structured pruning of a pretrained timm model, by default mobilenetv3_large_100: hours on a GPU.

    Channels are ordered by importance first; narrower and shallower subnets are then trained for a while, and
    `supernet search` finds the best one within a limit of MACs, parameters or latency.
    """
    return Job(
        space="from_timm",
        space_options='{"name": "mobilenetv3_large_100", "pretrained": true}',
        data=DataConfig(dataset="folder"),
        train=TrainConfig(epochs=20, batch_size=256, lr=0.02, weight_decay=1e-5, clip=5.0),
    )


def distil_features() -> Job:
    """From a pretrained transformer to all sizes of it: give its weights (--pretrained) and images without labels
    (--unlabelled), on which all subnets learn its features first; hours on a GPU."""
    return Job(
        space="vit",
        space_options='{"name": "vit_small_patch16_224"}',
        data=DataConfig(dataset="folder"),
        train=TrainConfig(
            epochs=30,
            batch_size=256,
            opt="adamw",
            lr=5e-4,
            weight_decay=0.05,
            drop_path_rate=0.1,
            clip=1.0,
        ),
        execution=Execution(amp="bf16"),
    )


def spos() -> Job:
    """SPOS (arXiv 1904.00420): one path a step, uniform over bins of MACs; a day on several GPUs.

    Images are normalised, and in the order of red, green and blue, where the authors' are neither. Searched, a network
    is trained alone in the space with `{"affine": true}`.
    """
    return Job(
        space="shufflenet_spos",
        data=DataConfig(dataset="folder"),
        train=TrainConfig(
            epochs=120,
            batch_size=1024,
            method="spos",
            random_subnets=1,
            macs_range=(290.0, 360.0),
            macs_step=10.0,
            label_smoothing=0.1,
            lr=0.125,
            sched="poly",
            decay_rate=1.0,
            weight_decay=4e-5,
            warmup_epochs=0,
        ),
    )


def fairnas() -> Job:
    """FairNAS (arXiv 1907.01845): every value of a choice once an update; days on several GPUs."""
    return Job(
        space="ofa_mobilenet_v3",
        data=DataConfig(dataset="folder"),
        train=TrainConfig(
            epochs=150,
            batch_size=256,
            method="fairnas",
            lr=0.045,
            weight_decay=4e-5,
            warmup_epochs=0,
            label_smoothing=0.0,
        ),
    )


RECIPES: dict[str, Callable[[], Job]] = {
    recipe.__name__: recipe
    for recipe in (
        digits,
        digits_shrinking,
        cifar10,
        text,
        bignas,
        alphanet,
        attentive_nas,
        once_for_all,
        spos,
        fairnas,
        cream,
        prune,
        distil_features,
    )
}
