"""`supernet sweep-trainings`, like a supernet that was hardly trained."""

import csv
from pathlib import Path

import pytest
import torch

from search.history import read_history
from supernet.artifacts.runs import load_run
from supernet_cli import sweep_trainings as command_module


@pytest.fixture
def sweep_trainings(command, folder):
    return lambda *arguments: command("sweep-trainings", "--run", folder / "run", *arguments)


@pytest.mark.exhaustive  # so does the trial that was lost
@pytest.mark.filterwarnings("ignore")  # Ray's
def test_each_trial_trains_a_supernet_and_searches_it(sweep_trainings, folder, tmp_path):
    few = ["--evaluations", "4", "--population", "4", "--images", "20", "--calibration-images", "20"]
    place = ["--storage", tmp_path, "--output", tmp_path / "out"]
    result = sweep_trainings("--methods", "sandwich", "spos", *few, *place)
    assert result.returncode == 0, result.stderr
    with (tmp_path / "out" / "trials.csv").open() as file:
        trials = list(csv.DictReader(file))
    assert [trial["method"] for trial in trials] == ["sandwich", "spos"]
    assert [trial["failed_because"] for trial in trials] == ["", ""]
    known, own = load_run(folder / "run"), [load_run(trial["run"]) for trial in trials]
    assert [run.job.train.method for run in own] == ["sandwich", "spos"]
    weights = [run.net.state_dict() for run in (known, *own)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())  # as by supernet train
    assert not all(torch.equal(tensor, weights[2][name]) for name, tensor in weights[0].items())
    for trial, run in zip(trials, own):
        (history,) = Path(trial["run"]).parent.glob("*.jsonl")
        assert len(read_history(history)[1]) == int(trial["evaluated"]) == 4
        assert run.net.space == known.net.space
    with (tmp_path / "out" / "front_macs.csv").open() as file:
        assert {row["method"] for row in csv.DictReader(file)} <= {"sandwich", "spos"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "progressive"], "method progressive goes with phases, which a recipe sets"),
        (["--lrs", "0"], "lr is above 0, not 0"),
        (["--spaces", "nowhere"], "nowhere"),
        (["--strategy", "annealing"], "there is no strategy 'annealing'; the strategies are evolution"),
        (["--resume"], "holds no sweep to resume"),
        (["--seeds", "1", "1"], "--seeds has 1 twice, which is one training: name it once"),
        (["--lrs", "0.1", "0.10"], "--lrs has 0.1 twice"),
    ],
)
def test_what_cannot_be_trained_or_searched_is_refused(sweep_trainings, tmp_path, arguments, message):
    result = sweep_trainings(*arguments, "--storage", tmp_path, "--output", tmp_path / "out")
    assert result.returncode == 2
    assert message in result.stderr
    assert not any(tmp_path.iterdir())


def test_a_trial_that_was_lost_goes_on_from_its_training(folder, tmp_path, monkeypatch):
    few = {"evaluations": 2, "population": 2, "images": 20, "calibration_images": 20}
    arguments = command_module.Arguments(folder / "run", methods=("spos",), **few)
    job = command_module.base(arguments)
    (trial,) = command_module.plan(arguments, job)

    def lost(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command_module, "run_search", lost)
        with pytest.raises(KeyboardInterrupt):
            command_module.search(
                trial, tmp_path / "one.jsonl", None, lambda generation: None, arguments, job, Path.cwd()
            )
    metrics = (tmp_path / "training" / "metrics.jsonl").read_text()
    command_module.search(trial, tmp_path / "two.jsonl", None, lambda generation: None, arguments, job, Path.cwd())
    assert (tmp_path / "training" / "metrics.jsonl").read_text() == metrics
    assert len(read_history(tmp_path / "two.jsonl")[1]) == 2
