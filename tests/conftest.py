import io
import os
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

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
def script():
    """Run a script as the command line would, but in this process, which has everything imported already."""
    import search.history  # before a script of the name `search` may hide the package  # noqa: F401

    scripts = Path(__file__).parents[1] / "scripts"

    def run(name, *arguments):
        stdout, stderr = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(scripts)
            patch.delitem(sys.modules, "command_line", raising=False)  # which takes that path away again
            patch.setattr(sys, "argv", [name, *map(str, arguments)])
            with redirect_stdout(stdout), redirect_stderr(stderr), pytest.raises(SystemExit) as end:
                runpy.run_path(str(scripts / name), run_name="__main__")
        return Result(end.value.code, stdout.getvalue(), stderr.getvalue())

    return run
