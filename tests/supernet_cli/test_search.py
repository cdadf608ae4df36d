"""`supernet search`, `sweep` and `extract` on a supernet that was hardly trained, by the scripts of a checkout."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from search.history import read_history

ROOT = Path(__file__).parents[2]


def search(folder, *arguments, script="search.py"):
    command = [sys.executable, ROOT / "scripts" / script, "--run", folder / "run", *arguments]
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
    assert all(float(row["phone, standard error"]) > 0 for row in front)
    assert all(0 <= float(row["phone, within limit"]) <= 1 for row in front)
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


def test_a_limit_below_all_measurements_is_said_in_the_terminal_and_the_report(folder):
    few = ["--evaluations", "4", "--population", "4", "--images", "20", "--calibration-images", "20"]
    options = ["--predictors", folder / "phone", "--limits", "phone=0.6", *few, "--output", folder / "tight"]
    result = search(folder, *options)
    assert result.returncode == 0, result.stderr
    warning = "the limit phone <= 0.6 ms is below all 40 measurements of its predictor"
    assert result.stdout.count(warning) == 1
    assert "predicted within 0.6 ms on phone by less than 1.64 standard errors" in result.stdout
    assert "is below all 40 measurements of its predictor" in (folder / "tight" / "report.html").read_text()
    extracted = search(
        folder, "--history", folder / "tight" / "search.jsonl", "--no-onnx", "--output", folder / "subnet",
        script="extract.py",
    )  # fmt: skip
    assert extracted.returncode == 0, extracted.stderr
    assert "it keeps within the limit of 0.6 ms with a probability of" in extracted.stdout


def test_screening_reports_its_rank_correlation_each_generation(folder):
    few = ["--evaluations", "24", "--population", "12", "--images", "40", "--calibration-images", "40"]
    result = search(folder, "--strategy", "screened", *few, "--output", folder / "screened")
    assert result.returncode == 0, result.stderr
    with (folder / "screened" / "generations.csv").open() as file:
        first, second = csv.DictReader(file)
    assert first["rank_correlation"] == ""
    assert -1 <= float(second["rank_correlation"]) <= 1


def test_a_sweep_writes_a_table_and_a_front(folder):
    options = ["--evaluations", "8", "--population", "4", "--images", "20", "--calibration-images", "20"]
    options += ["--predictors", folder / "phone", "--limits-ms", "1.5", "--strategies", "evolution", "random", "--asha"]
    result = search(folder, *options, script="sweep.py")
    assert result.returncode == 0, result.stderr
    with (folder / "run" / "sweep" / "trials.csv").open() as file:
        trials = list(csv.DictReader(file))
    assert [trial["strategy"] for trial in trials] == ["evolution", "random"]
    assert [trial["failed_because"] for trial in trials] == ["", ""]
    assert [int(trial["evaluated"]) for trial in trials] == [8, 8]
    with (folder / "run" / "sweep" / "front_phone.csv").open() as file:
        front = list(csv.DictReader(file))
    assert front
    assert max(float(row["phone"]) for row in front) <= 1.5
    again = search(folder, *options, script="sweep.py")
    assert again.returncode == 2
    assert again.stderr.strip().endswith("resume it, or choose another name")
    refused = search(folder, "--predictors", folder / "phone", "--strategies", "random", "dna", script="sweep.py")
    assert refused.returncode == 2
    assert "dna goes by a score of its own: run it with `supernet search`" in refused.stderr
