"""A supernet that was hardly trained, for all commands that need one."""

import dataclasses

import numpy as np
import pytest

from predictors import Device, LatencyPredictor
from supernet.artifacts.runs import run_job
from supernet.training.recipes import digits


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A training run in `run`, and a latency predictor of the device `phone` in `phone`."""
    folder = tmp_path_factory.mktemp("search")
    job = digits()
    settings = dataclasses.replace(job.train, epochs=1, batch_size=256, warmup_epochs=0)
    execution = dataclasses.replace(job.execution, eval_epochs=0)
    family = run_job(dataclasses.replace(job, train=settings, execution=execution), folder / "run").family
    generator = np.random.default_rng(0)
    archs = [family.space.sample(generator) for _ in range(40)]
    latency = [family.macs(arch) / 1e6 for arch in archs]
    device = Device("phone", "elsewhere")
    LatencyPredictor.fit(family.space, archs, latency, device=device).save(folder / "phone")
    return folder
