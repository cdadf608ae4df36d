"""`supernet search`, `sweep` and `extract` on a supernet that was hardly trained."""

import csv
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from search.history import read_history
from search.report.content import make_content
from search.report.sources import read_sources
from supernet.artifacts.subnet_config import read_subnet_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def search(command, folder):
    """`supernet search`, or another command, on the run in `folder`."""
    return lambda *arguments, name="search": command(name, "--run", folder / "run", *arguments)


def test_the_script_of_that_name_finds_the_package_of_that_name(folder):
    words = [sys.executable, ROOT / "scripts" / "search.py", "--run", folder / "run", "--strategy", "annealing"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: there is no strategy 'annealing'; the strategies are evolution")


def test_a_search_writes_its_history_and_front_and_resumes(search, folder):
    few = ["--evaluations", "6", "--images", "40", "--calibration-images", "40"]
    options = ["--predictors", folder / "phone", "--limits", "phone=1.5", *few, "--output", folder / "out"]
    first = search(*options)
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

    again = search(*options)
    assert again.returncode == 2
    assert again.stderr.strip().endswith("resume that search, or choose another place")
    longer = search(*options, "--evaluations", "9", "--resume")
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
        (["--population", "2000000"], "population is at most 10,000, and no more than the 1000 evaluations"),
        (["--strategy", "annealing"], "there is no strategy 'annealing'; the strategies are evolution"),
        (["--confirm"], "held-out examples judge the search, so that none are left to confirm its front by: judge by"),
    ],
)
def test_bad_input_is_one_clear_line(search, folder, arguments, message):
    result = search(*arguments, "--output", folder / "bad")
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (folder / "bad").exists()


def test_a_limit_below_all_measurements_is_said_in_the_terminal_and_the_report(search, folder):
    few = ["--evaluations", "4", "--population", "4", "--images", "20", "--calibration-images", "20"]
    options = ["--predictors", folder / "phone", "--limits", "phone=0.6", *few, "--output", folder / "tight"]
    result = search(*options)
    assert result.returncode == 0, result.stderr
    warning = "the limit phone <= 0.6 ms is below all 40 measurements of its predictor"
    assert result.stdout.count(warning) == 1
    assert "predicted within 0.6 ms on phone by less than 1.64 standard errors" in result.stdout
    assert "is below all 40 measurements of its predictor" in (folder / "tight" / "report.html").read_text()
    extracted = search(
        "--history", folder / "tight" / "search.jsonl", "--no-onnx", "--output", folder / "subnet",
        name="extract",
    )  # fmt: skip
    assert extracted.returncode == 0, extracted.stderr
    assert "it keeps within the limit of 0.6 ms with a probability of" in extracted.stdout
    (answers,) = make_content(read_sources([folder / "tight"]))["answers"]
    config = read_subnet_config(folder / "subnet")
    assert answers["folder"] == "../subnet"
    assert answers["classes"] == list(config.classes)
    assert sum(answers["right"]) / sum(answers["images"]) == config.facts["accuracy"]


def test_a_front_says_how_sure_it_is_and_is_confirmed(search, folder):
    few = ["--evaluations", "6", "--population", "6", "--images", "40", "--calibration-images", "40"]
    result = search(*few, "--confirm", "--output", folder / "sure")
    assert result.returncode == 0, result.stderr
    with (folder / "sure" / "front.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, name in itertools.product(rows, ("accuracy", "accuracy, confirmed")):
        assert 0 <= float(row[f"{name}, low"]) <= float(row[name]) <= float(row[f"{name}, high"]) <= 1
        assert len(row[name]) <= 4  # 0.85: of 40 images
    assert rows[-1]["as good as the best"] == "yes"
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("accuracy of the best: ")]

    archs = [evaluation.arch.to_json() for evaluation in read_history(folder / "sure" / "search.jsonl")[1]]
    content = make_content(read_sources([folder / "sure"]))
    assert line in content["notes"]
    candidates = content["candidates"]
    (best,) = (i for i in range(6) if archs[i] == rows[-1]["arch"])
    assert candidates["as_good"][best] == "yes"
    assert candidates["confirmed"][best]["score"] == float(rows[-1]["accuracy, confirmed"])
    assert candidates["confirmed"][best]["interval"][0] == float(rows[-1]["accuracy, confirmed, low"])
    assert sum(confirmed is not None for confirmed in candidates["confirmed"]) == len(rows)


def test_screening_reports_its_rank_correlation_each_generation(search, folder):
    few = ["--evaluations", "24", "--population", "12", "--images", "40", "--calibration-images", "40"]
    result = search("--strategy", "screened", *few, "--output", folder / "screened")
    assert result.returncode == 0, result.stderr
    with (folder / "screened" / "generations.csv").open() as file:
        first, second = csv.DictReader(file)
    assert first["rank_correlation"] == ""
    assert -1 <= float(second["rank_correlation"]) <= 1


@pytest.mark.exhaustive  # docs/cluster.md does it, too
@pytest.mark.filterwarnings("ignore")  # Ray's
def test_a_sweep_writes_a_table_and_a_front(search, folder):
    options = ["--evaluations", "8", "--population", "4", "--images", "20", "--calibration-images", "20"]
    options += ["--predictors", folder / "phone", "--limits-ms", "1.5", "--strategies", "evolution", "random", "--asha"]
    result = search(*options, name="sweep")
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
    again = search(*options, name="sweep")
    assert again.returncode == 2
    assert again.stderr.strip().endswith("resume it, or choose another name")
