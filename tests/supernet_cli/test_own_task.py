"""Commands on a task and data of one's own, each in one file: regression from two inputs, and tokens to a class."""

import csv
import dataclasses
import json
from pathlib import Path

import onnx
import pytest
import torch

from search.history import read_history
from search.report.taken_out import read_taken_out
from supernet.artifacts.export import onnx_runner
from supernet.artifacts.runs import load_run
from supernet.artifacts.subnet import load_subnet
from supernet.evaluation import evaluate
from supernet_cli import sweep
from supernet_cli.evaluate import opened

REGRESSION = """
import torch
from torch import nn
from torch.nn import functional as F

from supernet import Family, SearchSpace
from supernet.tasks import Task
from supernet.training.data.tensors import TensorData


class Network(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.position, self.time = nn.Linear(3, width), nn.Linear(1, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.head = nn.Linear(width, 1)

    def forward(self, position, time):
        x = self.position(position) * self.time(time)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Regression(Task):
    input_names, output_names, metric = ("position", "time"), ("value",), "r2"

    def inputs(self, batch, arch):
        return batch[:2]

    def loss(self, output, batch):
        return F.mse_loss(output, batch[2])

    def distil(self, output, teacher_output, batch):
        return F.mse_loss(output, teacher_output)

    def metrics(self, outputs, batches):
        found, wanted = (torch.cat(parts) for parts in zip(*((o, batch[2]) for o, batch in zip(outputs, batches))))
        error = F.mse_loss(found, wanted)
        return {"r2": 1 - (error / wanted.var(correction=0)).item(), "negative_mse": -error.item()}


def family(widths=(8, 16, 24)):
    return Family(
        SearchSpace({"width": tuple(widths), "depth": (1, 2, 3)}),
        lambda arch: Network(arch["width"], arch["depth"]),
        task=Regression(),
        inputs=lambda arch: (torch.empty(1, 3, device="meta"), torch.empty(1, 1, device="meta")),
    )


def examples(count, seed):
    draw = torch.Generator().manual_seed(seed)
    position, time = torch.randn(count, 3, generator=draw), torch.randn(count, 1, generator=draw)
    return position, time, (position[:, :1] + position[:, 1:2].abs()) * time


def points(count=512) -> TensorData:
    return TensorData(examples(count, 0), examples(300, 1), examples(300, 2))
"""

TOKENS = """
import torch
from torch import nn

from supernet import Family, SearchSpace
from supernet.tasks import Classification
from supernet.training.data.tensors import TensorData

LENGTH = 12


class Network(nn.Module):
    def __init__(self, vocabulary, num_classes, width, hidden):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.mixing = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.head = nn.Linear(width, num_classes)

    def forward(self, tokens):
        return self.head(self.mixing(self.embedding(tokens)).mean(1))


class TokensToClass(Classification):
    input_names = ("tokens",)

    def inputs(self, batch, arch):
        return batch[:1]


def family(vocabulary, num_classes):
    return Family(
        SearchSpace({"width": (4, 8, 16), "hidden": (8, 16, 32)}),
        lambda arch: Network(vocabulary, num_classes, arch["width"], arch["hidden"]),
        num_classes,
        task=TokensToClass(num_classes),
        inputs=lambda arch: (torch.zeros(1, LENGTH, dtype=torch.int64, device="meta"),),
    )


def examples(count, seed, classes):
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(16, (count, LENGTH), generator=draw)
    counts = torch.stack([(tokens == token).sum(1) for token in range(classes)], 1)
    return tokens, counts.argmax(1)


def sentences(classes=3) -> TensorData:
    parts = (examples(count, seed, classes) for seed, count in enumerate((512, 256, 256)))
    names = tuple(f"most of {token}" for token in range(classes))
    return TensorData(*parts, classes=names, family_arguments={"vocabulary": 16, "num_classes": classes})
"""
FILES = {"regression": (REGRESSION, "points", "r2"), "tokens": (TOKENS, "sentences", "accuracy")}
TRAIN = ["--epochs", "2", "--warmup-epochs", "0", "--batch-size", "32", "--opt", "adamw", "--lr", "0.08",
         "--eval-epochs", "1", "--checkpoint-steps", "10"]  # fmt: skip
FEW = ["--evaluations", "6", "--population", "3", "--images", "100", "--calibration-images", "100"]


def done(command, *arguments):
    result = command(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module", params=FILES)
def made(request, command, tmp_path_factory):
    """A folder with the file mine.py and what commands made of it, and the name of its metric."""
    source, dataset, metric = FILES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "mine.py").write_text(source)
    space = ["--space", "mine.py:family"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done(
            command, "train", *space, "--dataset", f"mine.py:{dataset}", *TRAIN, "--eval-epochs", "1", "--output", "run"
        )
        shown = done(command, "measure-latency", "--run", "run", *space, "--subnets", "9", "--rounds", "1",
                     "--runtime", "torch", "--name", "here", "--output", ".")  # fmt: skip
        assert "9 subnets measured, 0 failed" in shown
        done(command, "search", "--run", "run", *space, "--predictors", "here", *FEW, "--output", "search")
        done(command, "extract", "--run", "run", *space, "--history", "search/search.jsonl", "--output", "subnet")
        (taken_out,) = read_taken_out(Path("search")).values()
        assert taken_out["folder"] == "../subnet"
        assert metric in taken_out["facts"]
    return folder, metric


@pytest.fixture
def metric(made, monkeypatch):
    """The name of the task's metric; the test runs in the folder."""
    monkeypatch.chdir(made[0])
    return made[1]


def test_a_training_says_the_metrics_of_its_task_and_goes_on_to_the_same_weights(metric, command, tmp_path):
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [*next(line for line in lines if metric in line)[metric]] == ["largest", "smallest", "random_0", "random_1"]
    config = json.loads(Path("run/config.json").read_text())
    assert config["job"]["data"]["dataset"] == f"mine.py:{'points' if metric == 'r2' else 'sentences'}"
    assert config["job"]["data"]["hflip"] == 0.5  # none of the recipe's settings of images
    (Path("run") / "supernet.safetensors").rename(tmp_path / "whole")
    *former, last = sorted(Path("run/checkpoints").glob("*.pt"))
    assert former
    last.unlink()
    done(command, "train", "--output", "run", "--resume", "--space", "mine.py:family")
    assert Path("run/supernet.safetensors").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_search_is_by_the_first_metric(metric, command):
    _, evaluations = read_history("search/search.jsonl")
    assert [(list(e.scores), e.error) for e in evaluations] == [([metric], None)] * 6
    with open("search/front.csv") as file:
        assert all(float(row["here"]) > 0 and float(row[metric]) <= 1 for row in csv.DictReader(file))
    again = ["search", "--run", "run", "--space", "mine.py:family", "--predictors", "here", *FEW, "--output", "search"]
    done(command, *again, "--resume")
    assert read_history("search/search.jsonl")[1] == evaluations


def test_a_subnet_is_plain_and_in_files_that_compute_the_same(metric):
    config = json.loads(Path("subnet/config.json").read_text())
    run = load_run("run", space="mine.py:family")
    model, found = load_subnet("subnet", space="mine.py:family")
    inputs = run.family.task.inputs(run.data.test, None)
    with torch.no_grad():
        expected = model(*inputs)
    torch.testing.assert_close(onnx_runner("subnet/model.onnx")(*inputs), expected)
    assert [tensor.name for tensor in found.inputs] == list(run.family.task.input_names)
    assert (found.input_size, found.mean) == (None, None)
    assert {"model.int8.onnx", "model.pt2"} <= {path.name for path in Path("subnet").iterdir()}
    facts = evaluate(model, run.family.task, [run.data.test], run.net.space.validate(found.arch))
    assert {name: config["facts"][name] for name in facts} == pytest.approx(facts, abs=1e-6)
    assert next(iter(facts)) == metric


def test_a_subnet_loads_without_its_data_or_its_run(metric, tmp_path):
    (tmp_path / "model.py").write_text(Path("mine.py").read_text())
    model, config = load_subnet("subnet", space=f"{tmp_path / 'model.py'}:family")
    assert model(*(torch.zeros(2, *own.shape, dtype=getattr(torch, own.dtype)) for own in config.inputs)).shape[0] == 2


def test_subnets_are_compared_by_the_metrics_of_the_task(metric, command, tmp_path):
    arguments = ["evaluate", "subnet", "--run", "run", "--space", "mine.py:family", "--runtime", "torch"]
    done(command, *arguments, "--json", tmp_path / "found.json")
    (row,) = json.loads((tmp_path / "found.json").read_text())["rows"]
    facts = json.loads(Path("subnet/config.json").read_text())["facts"]
    assert {name: row[name] for name in facts} == pytest.approx(facts)
    assert row["latency_ms"] > 0


def test_the_order_in_which_data_say_what_they_are_is_no_difference(metric):
    data = load_run("run", space="mine.py:family").data
    turned = dataclasses.replace(data, family_arguments=dict(reversed(data.family_arguments.items())))
    assert opened("subnet", turned, None, "mine.py:family").config.family_arguments == data.family_arguments


def test_other_data_are_refused(metric, command):
    dataset = f"mine.py:{'points' if metric == 'r2' else 'sentences'}"
    arguments = ["evaluate", "subnet", "--space", "mine.py:family", "--dataset", dataset, "--dataset-options"]
    result = command(*arguments, '{"count": 600}' if metric == "r2" else '{"classes": 4}', "--no-latency")
    if metric == "r2":  # more examples of the same kind
        assert result.returncode == 0, result.stderr
        return
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "subnet is of other data: there" in result.stderr
    result = command("evaluate", "resnet10t", "--dataset", dataset)
    assert "there is no folder of a saved subnet 'resnet10t'; other networks are timm's, for images" in result.stderr
    result = command("evaluate", "subnet", "--space", "mine.py:family")  # the recipe's digits
    assert "subnet takes tokens, and the data are images: say its --dataset" in result.stderr


def test_subnets_are_exported_to_be_measured_elsewhere(metric, command, tmp_path):
    of_run = ["--run", "run", "--space", "mine.py:family", "--sources", "here"]
    done(command, "fit-latency", *of_run, "--suggest", "3", "--export-to", tmp_path)
    inputs = onnx.load(tmp_path / "0000.onnx").graph.input
    assert [tensor.name for tensor in inputs] == (["position", "time"] if metric == "r2" else ["tokens"])


def test_a_report_has_the_metric_by_its_name(metric, command):
    done(command, "report", "search", "--figures", "figures")
    text = Path("search/report.html").read_text()
    percent = "true" if metric == "accuracy" else "false"
    assert f'"score":{{"name":"{metric}","percent":{percent}}}' in text
    assert Path(f"figures/{metric}_run.svg").exists()


@pytest.mark.slow
def test_a_search_by_ray_workers_is_the_same(metric, command, tmp_path):
    searched = ["search", "--run", "run", "--space", "mine.py:family", "--predictors", "here", "--no-measure", *FEW]
    done(command, *searched, "--workers", "2", "--output", tmp_path / "workers")
    found = [read_history(folder / "search.jsonl")[1] for folder in (tmp_path / "workers", Path("search"))]
    assert sorted(e.to_json() for e in found[0]) == sorted(e.to_json() for e in found[1])


def test_a_sweep_runs_such_a_search(metric, tmp_path):
    arguments = sweep.Arguments(
        Path("run"), (Path("here"),), evaluations=4, population=4, images=40, space="mine.py:family"
    )
    (trial,) = sweep.plan(arguments, sweep.opened(arguments))
    sweep.search(
        trial, tmp_path / "search.jsonl", None, lambda generation: None, sweep.elsewhere(arguments), Path.cwd()
    )
    assert [list(e.scores) for e in read_history(tmp_path / "search.jsonl")[1]] == [[metric]] * 4


@pytest.mark.parametrize("score", ["rdm", "dna"])
def test_teachers_of_images_are_refused_in_one_line(metric, command, score):
    arguments = ["search", "--run", "run", "--space", "mine.py:family", "--score", score, "--teacher", "resnet10t"]
    result = command(*arguments, "--output", "other")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "error: the teacher resnet10t is no folder, and models of timm's take images" in result.stderr
    assert f"takes {'position and time' if metric == 'r2' else 'tokens'}: name the folder" in result.stderr


@pytest.mark.parametrize("score", ["te_nas", "zero_cost"])
def test_scores_for_images_are_refused_in_one_line(metric, command, score):
    arguments = ["search", "--run", "run", "--space", "mine.py:family", "--score", score]
    result = command(*arguments, "--output", "other")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    what = "Regression" if metric == "r2" else "TensorData"
    assert f"error: the score {score} needs " in result.stderr
    assert what in result.stderr
    assert "search a trained supernet by the score accuracy" in result.stderr


def test_a_search_without_a_run_takes_the_dataset_that_is_named(metric, command):
    dataset = f"mine.py:{'points' if metric == 'r2' else 'sentences'}"
    arguments = ["search", "--space", "nasbench201", "--score", "zero_cost", "--dataset", dataset, "--output", "other"]
    result = command(*arguments)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    expected = "the data are TensorData" if metric == "r2" else "takes no vocabulary, which the data say"
    assert expected in result.stderr


def test_what_trains_single_models_refuses_other_data(metric, command):
    single = ["train-standalone", "--run", "run", "--space", "mine.py:family", "--output", "other"]
    result = command(*single)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "the training of a single model needs images with classes, and the data are TensorData" in result.stderr
    result = command("finetune", "--run", "run", "--space", "mine.py:family", "--subnet", "subnet", "--output", "other")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    takes = "position, time" if metric == "r2" else "tokens"
    assert f"needs images with classes, and the subnet in subnet takes {takes}" in result.stderr


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("train", ["--output", "run", "--resume"]),
        ("search", ["--run", "run"]),
        ("extract", ["--run", "run", "--largest", "--output", "other"]),
        ("evaluate", ["subnet", "--run", "run"]),
        ("train-standalone", ["--run", "run", "--output", "other"]),
    ],
)
def test_what_is_not_said_again_is_not_imported(metric, command, name, arguments):
    source = Path("mine.py").read_text()
    Path("mine.py").write_text("raise AssertionError('imported')")
    try:
        result = command(name, *arguments)
    finally:
        Path("mine.py").write_text(source)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "code of your own, which is not imported because a file says so" in result.stderr
