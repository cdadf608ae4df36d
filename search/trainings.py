"""Trials of a sweep that train a supernet of their own before they search it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from search.sweep import TRAINS, TrialSettings
from supernet.artifacts.runs import Job
from supernet.training.data import Data
from supernet.training.train import make_method

COST = "macs"
"""What is traded off against the score, and stands in for a device: latency predictors are each of one space."""
SETTINGS = (TRAINS, "lr", "space", "seed")
"""What a trial's training follows from, in the settings of the trial."""


def trainings(
    job: Job, methods: Sequence[str], lrs: Sequence[float], spaces: Sequence[str], seeds: Sequence[int]
) -> list[TrialSettings]:
    """The settings of all trainings; where nothing is said of one of them it is that of `job`."""
    values = product(methods or [job.train.method], lrs or [job.train.lr], spaces or [job.space], seeds)
    return [{**dict(zip(SETTINGS, each)), "device": COST} for each in values]


def training_job(job: Job, settings: TrialSettings, device: str) -> Job:
    """`job` with what `settings` say of a trial's training, which runs on `device`. Another space has no options.
    ValueError if a setting contradicts others."""
    space = str(settings["space"])
    return replace(
        job,
        space=space,
        space_options=job.space_options if space == job.space else "{}",
        train=replace(job.train, method=settings["method"], lr=settings["lr"], seed=settings["seed"]),
        execution=replace(job.execution, device=device),
    )


def check_training(job: Job, data: Data) -> None:
    """ValueError if a space or method of the job does not fit the `data`."""
    family = job.family(data.family_arguments)
    if not job.phases:
        make_method(family, job.train)
