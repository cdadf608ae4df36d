"""`supernet sweep` over strategies that go by different scores, on a supernet that was hardly trained."""

import csv
import json

import pytest
import ray

from search.history import read_history
from supernet.artifacts.runs import read_family

FEW = ["--evaluations", "4", "--population", "4", "--images", "20", "--calibration-images", "20", "--hand-in", "2"]
BLOCKS = ["--dna.epochs", "1", "--dna.batch-size", "256", "--dna.points", "blocks.0", "--dna.cuts", "blocks.0"]


@pytest.fixture(scope="module")
def cpus():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def sweep(command, folder):
    return lambda *arguments: command(
        "sweep", "--run", folder / "run", "--predictors", folder / "phone", "--name", "compare", *FEW, *arguments
    )


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.exhaustive  # docs/tutorials/compare_strategies.md does it, too
@pytest.mark.filterwarnings("ignore")  # Ray's
def test_strategies_by_different_scores_are_judged_by_one_yardstick(cpus, sweep, folder, tmp_path):
    entries = ["evolution", "dna", "macs"]
    options = ["--strategies", *entries, "--limits-ms", "1.5", "--teacher", folder / "run", *BLOCKS]
    options += ["--output", tmp_path, "--zero-cost-images", "4"]
    result = sweep(*options)
    assert result.returncode == 0, result.stderr
    standings = rows(tmp_path / "strategies.csv")
    assert {row["strategy"] for row in standings} == set(entries)
    assert {row["judged_by"] for row in standings} == {"accuracy"}
    values = [float(row["value"]) for row in standings]
    assert values == sorted(values, reverse=True)
    assert [row["told_apart"] for row in standings] == ["", "no", "no"]
    handed_in = rows(tmp_path / "handed_in.csv")
    assert all(float(row["phone"]) <= 1.5 for row in handed_in)
    known = {row["arch"]: row["accuracy"] for row in handed_in}
    assert all(row["accuracy"] == known[row["arch"]] for row in handed_in)
    most = max((row for row in handed_in if row["strategy"] == "macs"), key=lambda row: float(row["macs"]))
    assert (most["place"], most["score"]) == ("0", most["macs"])
    judged = [evaluation.arch.to_json() for evaluation in read_history(tmp_path / "judged_supernet.jsonl")[1]]
    by_others = {row["arch"] for row in handed_in if row["strategy"] != "evolution"}
    by_evolution = {e.arch.to_json() for e in read_history(tmp_path / "trials" / "0000.jsonl")[1]}
    assert sorted(judged) == sorted(by_others - by_evolution)  # which evolution has judged already
    blocks = json.loads((tmp_path / "dna" / "ratings.json").read_text())["blocks"]
    assert len(blocks) == 1
    assert list((folder / "run" / "compare" / "histories").rglob("dna")) == []  # no trial has trained them again
    front = rows(tmp_path / "front_phone.csv")
    assert max(float(row["accuracy"]) for row in front) >= values[0]

    table = tmp_path / "table.csv"
    space = read_family(folder / "run").space
    archs = [space.largest.to_json(), *dict.fromkeys(row["arch"] for row in handed_in)]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["arch", "accuracy"], *zip(archs, range(100, 0, -1))])
    again = sweep(*options, "--judge", "table", "--table", table, "--resume")
    assert again.returncode == 0, again.stderr
    standings = rows(tmp_path / "strategies.csv")
    assert {row["judged_by"] for row in standings} == {"published"}
    assert (standings[0]["value"], standings[0]["regret"]) == ("99.0", "0.0")  # the largest is beyond the limit
    assert float(standings[0]["value"]) == max(float(row["published"]) for row in rows(tmp_path / "handed_in.csv"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategies", "annealing"], "there is no strategy and no score 'annealing'; the strategies are evolution"),
        (["--strategies", "random", "dna"], "the score dna needs a teacher"),
        (["--strategies", "random", "macs", "--asha"], "those of random, macs are of different scores: leave it out"),
        (["--strategies", "rdm", "--teacher", "RUN", "--rdm.epochs", "1"], "leave out --rdm.epochs"),
        (["--judge", "standalone"], "--judge standalone and --judge-epochs, how long it trains, go together"),
        (["--table", "nowhere.csv"], "--judge table and --table, the file, go together"),
        (["--judge", "table", "--table", "nowhere.csv"], "there is no table nowhere.csv"),
        (["--hand-in", "0"], "hand_in is at least 1, not 0"),
        (["--seeds", "0", "1", "0"], "--seeds has 0 twice, which is one search: name it once"),
        (["--strategies", "macs", "macs"], "--strategies has macs twice"),
        (["--limits-ms", "1.5", "1.50"], "--limits-ms has 1.5 twice"),
        (["--strategies", "evolution", "accuracy"], "evolution and accuracy are one and the same strategy"),
        (["--strategies", "ensemble", "--ensemble.members", "accurcy"], "there is no score 'accurcy'"),
        (["--strategies", "regions"], "regions cannot be counted in this space"),
    ],
)
def test_bad_input_is_one_clear_line(sweep, folder, tmp_path, arguments, message):
    given = [folder / "run" if argument == "RUN" else argument for argument in arguments]
    result = sweep(*given, "--storage", tmp_path, "--output", tmp_path / "bad")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_settings_of_scores_that_no_strategy_has_are_named(sweep, tmp_path, caplog):
    words = ["--strategies", "random", "macs", "--asha", "--teacher", "none", "--akd.epochs", "7"]
    result = sweep(*words, "--storage", tmp_path, "--output", tmp_path / "bad")
    assert "of different scores" in result.stderr
    assert [record.getMessage() for record in caplog.records if "effect" in record.getMessage()] == [
        "--akd has no effect: no strategy here has the score akd",
        "--teacher has no effect: no strategy here has the score rdm or dna or akd",
    ]
