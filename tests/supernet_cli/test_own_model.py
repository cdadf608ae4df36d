"""Commands on a space that is a file of one's own, which they import where it is said again, and only there."""

import csv
import os
from pathlib import Path

import pytest

from search.history import read_history
from supernet.artifacts.subnet import load_subnet
from supernet_cli import sweep

SOURCE = """
from torch import nn

from supernet import SearchSpace
from supernet.families import Family


class Block(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + 0.0


def build(arch, drop_rate=0.0, drop_path_rate=0.0):
    layers = [nn.Conv2d(3, arch["width"], 3, 2), nn.BatchNorm2d(arch["width"]), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(Block(*layers), nn.Flatten(), nn.Linear(arch["width"], 10))


def tiny(num_classes=10, widths=range(2, 18)):
    return Family(SearchSpace({"width": tuple(widths)}), build, num_classes=num_classes, input_size=16)
"""
SPACE = ["--space", "mine.py:tiny"]
FEW = ["--images", "40", "--calibration-images", "40", "--evaluations", "4", "--population", "4"]
SHORT = ["--epochs", "1", "--warmup-epochs", "0", "--eval-epochs", "0"]


@pytest.fixture(scope="module")
def folder(command, tmp_path_factory):
    """A trained supernet in run/, the predictor of a device in here/, and a subnet in subnet/."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, arguments in (
            ("train", [*SPACE, *SHORT, "--batch-size", "256", "--output", "run"]),
            ("measure-latency", ["--run", "run", *SPACE, "--subnets", "8", "--rounds", "1", "--runtime", "torch",
                                 "--name", "here", "--output", "."]),
            ("extract", ["--run", "run", *SPACE, "--smallest", "--no-onnx", "--output", "subnet"]),
        ):  # fmt: skip
            result = command(name, *arguments)
            assert result.returncode == 0, result.stderr
            if name == "train":
                assert "Next: supernet search --run run --space mine.py:tiny\n" in result.stdout
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def test_a_subnet_of_ones_own_loads_by_its_space(folder):
    model, config = load_subnet("subnet", space="mine.py:tiny")
    assert (type(model[0]).__name__, config.arch) == ("Block", {"width": 2})


@pytest.mark.exhaustive  # another task's is tested as well
def test_a_search_is_the_same_by_a_ray_worker_that_has_no_such_file(command, tmp_path, monkeypatch):
    searched = ["search", "--run", "run", *SPACE, "--predictors", "here", "--no-measure", *FEW]
    alone = command(*searched, "--output", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    with_workers = command(*searched, "--workers", "1", "--output", tmp_path / "worker")
    assert with_workers.returncode == 0, with_workers.stderr
    found = [read_history(tmp_path / name / "search.jsonl")[1] for name in ("alone", "worker")]
    assert [e.error for e in found[0]] == [None] * 4
    assert sorted(e.to_json() for e in found[0]) == sorted(e.to_json() for e in found[1])
    with (tmp_path / "alone" / "front.csv").open() as file:
        assert all(float(row["here"]) > 0 for row in csv.DictReader(file))


def test_a_sweep_has_the_space_where_its_workers_find_it(tmp_path):
    arguments = sweep.Arguments(Path("run"), (Path("here"),), evaluations=4, population=4, images=40, space=SPACE[1])
    (trial,) = sweep.plan(arguments, sweep.opened(arguments))
    here, elsewhere = Path.cwd(), sweep.elsewhere(arguments)
    assert elsewhere.space == f"{here / 'mine.py'}:tiny"
    try:
        sweep.search(trial, tmp_path / "search.jsonl", None, lambda generation: None, elsewhere, tmp_path)
    finally:
        os.chdir(here)
    assert len(read_history(tmp_path / "search.jsonl")[1]) == 4


def test_a_subnet_is_tuned_trained_anew_and_compared(command, tmp_path):
    common = ["--run", "run", *SPACE, "--subnet", "subnet", "--no-onnx", *SHORT, "--batch-size", "256"]
    for name in ("finetune", "train-standalone"):
        result = command(name, *common, "--output", tmp_path / name)
        assert result.returncode == 0, result.stderr
    networks = [tmp_path / "finetune", tmp_path / "train-standalone"]
    result = command("evaluate", *networks, "--run", "run", *SPACE, "--no-latency", "--workers", "0")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("train", ["--output", "run", "--resume"]),
        ("search", ["--run", "run"]),
        ("measure-latency", ["--run", "run"]),
        ("extract", ["--run", "run", "--largest", "--output", "other"]),
        ("sweep", ["--run", "run", "--predictors", "here"]),
        ("finetune", ["--run", "run", "--subnet", "subnet", "--output", "other"]),
        ("train-standalone", ["--run", "run", "--output", "other"]),
        ("evaluate", ["subnet", "--run", "run", "--no-latency"]),
    ],
)
def test_what_is_not_said_again_is_not_imported(command, folder, name, arguments):
    (folder / "mine.py").write_text("raise AssertionError('imported')")
    try:
        result = command(name, *arguments)
    finally:
        (folder / "mine.py").write_text(SOURCE)
    assert result.returncode == 2
    assert "is of the space mine.py:tiny: code of your own, which is not imported because a file says" in result.stderr
    assert "Say it again with --space mine.py:tiny" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_run_has_its_own_space(command, folder):
    for space, message in (("alphanet", "--run, or"), ("mine.py:other", "mine.py:other is another")):
        result = command("search", "--run", "run", "--space", space)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert message in result.stderr


def test_a_subnet_of_ones_own_is_pruned(command, caplog):
    few = ["--step", "1", "--images", "40", "--no-onnx"]
    result = command("prune", "--subnet", "subnet", "--run", "run", *SPACE, *few, "--output", "pruned")
    assert result.returncode == 0, result.stderr
    with pytest.raises(ValueError, match=r"is of the space mine\.py:tiny.*Say it again"):
        load_subnet("pruned")
    model, config = load_subnet("pruned", space="mine.py:tiny")
    whole = load_subnet("subnet", space="mine.py:tiny").config
    assert (whole.arch["width"], model[0][0].out_channels, model[2].in_features) == (2, 1, 1)
    assert config.facts["macs"] < whole.facts["macs"]
    evaluated = command("evaluate", "pruned", "subnet", "--run", "run", *SPACE, "--no-latency")
    assert evaluated.returncode == 0, evaluated.stderr
    assert not caplog.records  # the code is the same
