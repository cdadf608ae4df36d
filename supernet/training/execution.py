"""What a run's weights do not follow from: where its images lie, and how it is executed.

A run goes on and is searched under another of these; all its other settings are fixed when it begins.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from supernet.training.data import DataConfig

LOCATION = frozenset({"data.root", "data.test_root"})
EXECUTION = frozenset(
    {
        "data.workers",
        "train.device",
        "train.compile",
        "train.channels_last",
        "train.log_steps",
        "train.tensorboard",
        "train.checkpoint_steps",
        "train.checkpoint_minutes",
        "train.keep_checkpoints",
        "train.eval_epochs",
        "train.eval_images",
        "train.eval_random",
    }
)
SAID_ANEW = LOCATION | EXECUTION
"""Settings of a job, by their path in it, that may be others than those that its run was begun with."""


def differences(
    begun: Mapping[str, Any], now: Mapping[str, Any], said_anew: Collection[str] = SAID_ANEW, prefix: str = ""
) -> str:
    """The settings, but those in `said_anew`, that are others than when a run was begun, with their values then."""
    found = []
    for name, value in begun.items():
        path = f"{prefix}{name}"
        if path in said_anew:
            continue
        if isinstance(value, Mapping) and isinstance(now.get(name), Mapping):
            found.append(differences(value, now[name], said_anew, f"{path}."))
        elif value != now.get(name):
            found.append(f"{path}={value}")
    return ", ".join(filter(None, found))


def located(config: DataConfig, root: str | None = None, test_root: str | None = None) -> DataConfig:
    """`config` with images at `root` and `test_root`, if these are given, as absolute paths if they are here at all."""
    return replace(config, root=_absolute(root or config.root), test_root=_absolute(test_root or config.test_root))


def _absolute(place: str | None) -> str | None:
    return os.path.abspath(place) if place and os.path.exists(place) else place
