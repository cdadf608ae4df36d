"""Training recipes: functions that return a whole job, each setting of which can be overridden.

`digits` is the small one for every method: `--recipe digits --method fairnas`, for example.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from supernet.data import DataConfig
from supernet.runs import Job
from supernet.train import TrainConfig


def digits() -> Job:
    """scikit-learn's handwritten digits on a laptop: about two minutes on 2 cores."""
    return Job(
        space="mobilenet_v3_micro",
        data=DataConfig(
            dataset="digits",
            holdout=0.2,
            workers=0,
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
            warmup_epochs=2,
            ema_decay=0.99,
            calibration_images=500,
        ),
    )


def cifar10() -> Job:
    """Small photographs as a folder or tar files (give --root and --test-root); hours on a GPU."""
    return Job(
        space="mobilenet_v3_micro",
        data=DataConfig(dataset="folder", scale=(0.4, 1.0), color_jitter=0.0, crop_pct=1.0),
        train=TrainConfig(epochs=100, batch_size=256, lr=0.2, weight_decay=1e-4, warmup_epochs=5, clip=5.0),
    )


def alphanet() -> Job:
    """AlphaNet (arXiv 2102.07954): adaptive alpha-divergence, the settings of AttentiveNAS; days on many GPUs."""
    return Job(
        space="alphanet",
        data=DataConfig(dataset="folder", workers=16),
        train=TrainConfig(
            epochs=360,
            batch_size=4096,
            lr=0.1,
            weight_decay=1e-5,
            warmup_epochs=5,
            random_subnets=2,
            distillation="adaptive_alpha",
            label_smoothing=0.1,
            drop_rate=0.2,
            drop_path_rate=0.2,
            clip=1.0,
            clip_mode="value",
            amp="bf16",
            calibration_images=4096,
        ),
    )


def attentive_nas() -> Job:
    """AttentiveNAS (arXiv 2011.09011): WorstUp sampling and KL distillation; days on many GPUs."""
    job = alphanet()
    train = dataclasses.replace(job.train, method="worst_up", distillation="kl", trials=3, macs_step=25.0)
    return dataclasses.replace(job, train=train)


def prune() -> Job:
    """Structured pruning of a pretrained timm model, by default mobilenetv3_large_100: hours on a GPU.

    Channels are ordered by importance first; narrower and shallower subnets are then trained for a while, and
    scripts/search.py finds the best one within a limit of MACs, parameters or latency.
    """
    return Job(
        space="from_timm",
        space_options='{"name": "mobilenetv3_large_100", "pretrained": true}',
        data=DataConfig(dataset="folder", workers=8),
        train=TrainConfig(epochs=20, batch_size=256, lr=0.02, weight_decay=1e-5, warmup_epochs=1, clip=5.0),
    )


def spos() -> Job:
    """SPOS (arXiv 1904.00420): one uniform path a step; a day on several GPUs."""
    return Job(
        space="ofa_mobilenet_v3",
        data=DataConfig(dataset="folder", workers=16),
        train=TrainConfig(
            epochs=120,
            batch_size=1024,
            method="spos",
            random_subnets=1,
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
        data=DataConfig(dataset="folder", workers=16),
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
    recipe.__name__: recipe for recipe in (digits, cifar10, alphanet, attentive_nas, spos, fairnas, prune)
}
