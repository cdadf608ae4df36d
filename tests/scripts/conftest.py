"""Running a script in this process, and a supernet that was hardly trained, for all scripts that need one."""

import dataclasses
import io
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import search.history  # before a script of the name `search` may hide the package  # noqa: F401
from predictors import Device, LatencyPredictor
from supernet.recipes import digits
from supernet.runs import run_job


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A training run in `run`, and a latency predictor of the device `phone` in `phone`."""
    folder = tmp_path_factory.mktemp("search")
    job = digits()
    settings = dataclasses.replace(job.train, epochs=1, batch_size=256, warmup_epochs=0, eval_epochs=0)
    family = run_job(dataclasses.replace(job, train=settings), folder / "run").family
    generator = np.random.default_rng(0)
    archs = [family.space.sample(generator) for _ in range(40)]
    latency = [family.macs(arch) / 1e6 for arch in archs]
    device = Device("phone", "elsewhere")
    LatencyPredictor.fit(family.space, archs, latency, device=device).save(folder / "phone")
    return folder


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def script():
    """Run a script as the command line would, but in this process, which has everything imported already."""
    scripts = Path(__file__).parents[2] / "scripts"

    def run(name, *arguments):
        stdout, stderr = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(scripts)
            patch.setattr(sys, "argv", [name, *map(str, arguments)])
            with redirect_stdout(stdout), redirect_stderr(stderr), pytest.raises(SystemExit) as end:
                runpy.run_path(str(scripts / name), run_name="__main__")
        return Result(end.value.code, stdout.getvalue(), stderr.getvalue())

    return run
