"""scripts/search.py from the command line on a supernet that was hardly trained."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from search.history import read_history

ROOT = Path(__file__).parents[2]


def search(folder, *arguments):
    command = [sys.executable, ROOT / "scripts" / "search.py", "--run", folder / "run", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False)


def test_a_search_writes_its_history_and_front_and_resumes(folder):
    few = ["--evaluations", "6", "--population", "6", "--images", "40", "--calibration-images", "40"]
    options = ["--predictors", folder / "phone", "--limits", "phone=1.5", *few, "--output", folder / "out"]
    first = search(folder, *options)
    assert first.returncode == 0, first.stderr
    evaluations = read_history(folder / "out" / "search.jsonl")[1]
    assert len(evaluations) == 6
    assert max(evaluation.costs["phone"] for evaluation in evaluations) <= 1.5
    with (folder / "out" / "front.csv").open() as file:
        front = list(csv.DictReader(file))
    assert {row["arch"] for row in front} <= {evaluation.arch.to_json() for evaluation in evaluations}
    assert "<title>out</title>" in (folder / "out" / "report.html").read_text()

    again = search(folder, *options)
    assert again.returncode == 2
    assert again.stderr.strip().endswith("resume that search, or choose another place")
    longer = search(folder, *options, "--evaluations", "9", "--resume")
    assert longer.returncode == 0, longer.stderr
    assert read_history(folder / "out" / "search.jsonl")[1][:6] == evaluations


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limits", "watch=3"], "a limit on 'watch', which is no cost and no device with a latency predictor"),
        (
            ["--limits", "macs=1000"],
            "no architecture meets the limit macs <= 1000; the smallest reachable value is 507640",
        ),
        (["--strategy", "annealing"], "there is no strategy 'annealing'; the strategies are evolution"),
    ],
)
def test_bad_input_is_one_clear_line(folder, arguments, message):
    result = search(folder, *arguments, "--output", folder / "bad")
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (folder / "bad").exists()
