import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from supernet.own_code import modules_from_files
from supernet_cli.main import main
from tests.elsewhere import NAME, register

os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets its workers starve beside the other tests

if not os.environ.get("GPU_TESTS"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # results are those of a CPU, whatever the machine has; see tests/gpu

ELSEWHERE = None if os.environ.get("GPU_TESTS") else register()  # before autograd counts the devices

torch.set_num_threads(1)  # bit for bit: with several, MKL chooses how to split a sum by how busy the machine is


@pytest.fixture
def numpy_generator():
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_modules(tmp_path_factory):
    """What a test imports by name from a folder of its own is not what another test means by the same name."""
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name, module in list(sys.modules.items()):
        is_own = str(getattr(module, "__file__", None)).startswith(folder)
        if is_own and module not in modules_from_files():  # whose names are those of their contents
            del sys.modules[name]


@pytest.fixture(scope="session")
def elsewhere():
    """The name of a device that is not the CPU (see `tests.elsewhere`)."""
    if ELSEWHERE is None:
        pytest.skip("there is a GPU instead")
    return NAME


# What takes whole runs, every family, Ray or a browser. `make check` leaves it out; the other tests take less than four
# minutes of processor time.
SLOW = (
    "gpu/",
    "exits/",
    "netaug/",
    "search/blockwise/",
    "search/prefix/",
    "search/scores/",
    "search/test_parallel.py",
    "search/test_sweep.py",
    "search/untrained/",
    "service/",
    "supernet/artifacts/test_runs.py",
    "supernet/families/",
    "supernet/training/methods/test_prioritized.py",
    "supernet/training/test_standalone.py",
    "supernet/training/test_train.py",
    "supernet_cli/test_check_images.py",
    "supernet_cli/test_compress.py",
    "supernet_cli/test_device.py",
    "supernet_cli/test_find_ticket.py",
    "supernet_cli/test_latency.py",
    "supernet_cli/test_own_model.py",
    "supernet_cli/test_own_task.py",
    "supernet_cli/test_pipeline.py",
    "supernet_cli/test_pruning.py",
    "supernet_cli/test_report.py",
    "supernet_cli/test_resume.py",
    "supernet_cli/test_search",
    "supernet_cli/test_single_models.py",
    "supernet_cli/test_sweep_trainings.py",
    "supernet_cli/test_text.py",
    "supernet_cli/test_train_supernet.py",
    "test_docs.py",
    "test_installed.py",
    "test_untouched.py",
)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.relative_to(Path(__file__).parent).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("timed") and not os.environ.get("TIMED_TESTS"):
            item.add_marker(pytest.mark.skip(reason="seconds are those of a quiet machine: TIMED_TESTS=1"))
        if item.get_closest_marker("exhaustive") and not os.environ.get("EXHAUSTIVE_TESTS"):
            item.add_marker(pytest.mark.skip(reason="further cases of what is tested anyway: make exhaustive"))


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
