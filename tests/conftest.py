import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

import numpy as np
import pytest
import torch

from supernet_cli.main import main

os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets its workers starve beside the other tests

torch.set_num_threads(1)  # bit for bit: with several, MKL chooses how to split a sum by how busy the machine is


@pytest.fixture
def numpy_generator():
    return np.random.default_rng(0)


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def command():
    """Run `supernet NAME ...` as the command line would, but in this process, which has everything imported already."""

    def run(name, *arguments):
        stdout, stderr = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["supernet", name, *map(str, arguments)])
            with redirect_stdout(stdout), redirect_stderr(stderr), pytest.raises(SystemExit) as end:
                main()
        return Result(end.value.code, stdout.getvalue(), stderr.getvalue())

    return run
