"""benchmarks/gpu/run.sh, which is seldom run where it counts: with a stand-in for Python that fails at times."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu" / "run.sh"
STAND_IN = """#!/bin/sh
case "$*" in
  -c*) echo a-card; exit ;;
  *--ways\\ eager\\ graphs*) echo two ways; exit 3 ;;
esac
echo "$@"
for last; do :; done
case "$last" in *.json) echo "{}" > "$last" ;; esac
"""


@pytest.fixture
def run(tmp_path):
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def run(*parts, **environment):
        command = ["bash", str(SCRIPT), str(tmp_path / "out"), *parts]
        environment = os.environ | {"PYTHON": str(python)} | environment
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout, {path.name for path in (tmp_path / "out").iterdir()}

    return run


def test_a_part_that_fails_does_not_keep_others_from_running(run):
    said, files = run("train_step_64", "gpu_tests", "training_200")
    assert "== train_step_64 ended with 3 after" in said
    assert "== train_step_64_eager ended with 0 after" in said  # what there is without the way that fails
    logs = {f"{name}_a-card.log" for name in ("train_step_64", "train_step_64_eager", "gpu_tests", "training_200")}
    assert files == logs | {"train_step_64_eager_a-card.json", "training_200_a-card.json"}
    assert "--resolution-steps 200" in said
    assert "tests/gpu" in said


def test_parts_for_which_there_is_no_time_are_named(run):
    said, files = run("candidates", "new_shapes", SECONDS_IN_ALL="10")
    assert said.splitlines()[1:] == ["== candidates has no time left", "== new_shapes has no time left"]
    assert not files
