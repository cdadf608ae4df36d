"""Regression from two inputs: a toy of a task of one's own, from training to export."""

import json
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distill.objective import Objective
from search.evaluator import evaluate_here
from search.loop import ask_and_tell
from search.problem import Problem
from search.scores.accuracy import SupernetScore, held_out
from search.strategies import make_strategy
from supernet import Family, SearchSpace
from supernet.artifacts.export import export_onnx, onnx_runner
from supernet.evaluation import calibrated, evaluate
from supernet.tasks import Task
from supernet.training.cohort import train_models
from supernet.training.data.tensors import TensorData
from supernet.training.execution import Execution
from supernet.training.loop.config import LoopConfig
from supernet.training.step import TrainConfig
from supernet.training.train import train


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
    input_names, output_names = ("position", "time"), ("value",)

    def inputs(self, batch, arch):
        return batch[:2]

    def loss(self, output, batch):
        return F.mse_loss(output, batch[2])

    def distil(self, output, teacher_output, batch):
        return F.mse_loss(output, teacher_output)

    def metrics(self, outputs, batches):
        """The part of the variance that is explained, at most 1."""
        found, wanted = (torch.cat(parts) for parts in zip(*((o, batch[2]) for o, batch in zip(outputs, batches))))
        return {"r2": 1 - (F.mse_loss(found, wanted) / wanted.var(correction=0)).item()}

    def per_example(self, output, batch):
        return 1 - ((output - batch[2]) ** 2 / batch[2].var(correction=0)).flatten()


def examples(count, seed):
    draw = torch.Generator().manual_seed(seed)
    position, time = torch.randn(count, 3, generator=draw), torch.randn(count, 1, generator=draw)
    return position, time, (position[:, :1] + position[:, 1:2].abs()) * time


FAMILY = Family(
    SearchSpace({"width": (8, 16, 24), "depth": (1, 2)}),
    lambda arch: Network(arch["width"], arch["depth"]),
    task=Regression(),
    inputs=lambda arch: (torch.empty(1, 3, device="meta"), torch.empty(1, 1, device="meta")),
)


def test_from_training_to_export(tmp_path):
    data = TensorData(examples(512, 0), examples(300, 1), examples(300, 2))
    config = TrainConfig(epochs=12, batch_size=32, opt="adamw", lr=0.08, weight_decay=0.0)
    net = train(FAMILY, FAMILY.supernet(), data, config, tmp_path, Execution(eval_epochs=12, eval_images=300)).eval()
    noted = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["r2"]
    assert list(noted) == ["largest", "smallest", "random_0", "random_1"]
    assert noted["largest"] > 0.85  # of a network that knows nothing, 0

    score = SupernetScore(net, FAMILY.task, partial(held_out, data, 512, 0, None), FAMILY.resolution)
    problem = Problem(FAMILY.space, ["r2"], {"macs": lambda archs: [*map(FAMILY.macs, archs)]}, {}, ["r2", "macs"])
    result = ask_and_tell(problem, make_strategy("evolution", problem, 0, 3), evaluate_here({"r2": score}), 6)
    assert {(e.arch, e.costs["macs"]) for e in result.evaluations} == {
        (arch, 4 * arch["width"] + arch["depth"] * arch["width"] ** 2 + arch["width"]) for arch in FAMILY.space
    }
    best = max(result.evaluations, key=lambda evaluation: evaluation.scores["r2"])
    model = calibrated(net, best.arch, [batch[:2] for batch in data.calibration_batches(None, 512, 0)])
    assert evaluate(model, FAMILY.task, [data.holdout])["r2"] == pytest.approx(best.scores["r2"], abs=1e-6)

    ((_, judged),) = score.judged([best.arch])  # one by one, since there are two inputs
    assert judged.score == best.scores["r2"] == pytest.approx(judged.per_example.mean(), abs=1e-6)
    assert len(judged.per_example) == 300

    *inputs, _ = data.test
    assert torch.equal(net(*inputs, arch=best.arch), net.extract(best.arch)(*inputs))
    assert torch.equal(net(*inputs, best.arch), net.extract(best.arch)(*inputs))
    export_onnx(model, tmp_path / "model.onnx", FAMILY.example(best.arch), names=FAMILY.task, dynamic_batch=True)
    torch.testing.assert_close(onnx_runner(tmp_path / "model.onnx")(*inputs), model(*inputs).detach())


def test_alone_with_a_teacher_and_with_a_peer(tmp_path):
    data = TensorData(examples(512, 0), examples(300, 1), examples(300, 2))
    config = LoopConfig(epochs=12, batch_size=32, opt="adamw", lr=0.08, weight_decay=0.0)
    execution = Execution(eval_epochs=12, eval_images=300)

    def trained(directory, widths, objective, teacher=None):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            models = [Network(width, 2) for width in widths]
        found = train_models(
            models, [None] * len(models), data, config, directory, objective, teacher,
            task=FAMILY.task, execution=execution,
        )  # fmt: skip
        *_, before, last = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
        return found, last["r2"], before["losses"]

    (teacher,), r2, losses = trained(tmp_path / "alone", [24], Objective())
    assert r2 > 0.85
    assert r2 == evaluate(teacher, FAMILY.task, [data.holdout])["r2"]
    assert list(losses) == ["labels"]

    (student,), r2, losses = trained(tmp_path / "taught", [16], Objective(labels=0.0, kl=1.0), teacher)
    assert list(losses) == ["kl"]  # of the teacher's answers alone
    assert r2 > 0.85
    *inputs, _ = data.test
    with torch.no_grad():
        assert F.mse_loss(student.eval()(*inputs), teacher(*inputs)) < F.mse_loss(teacher(*inputs), data.test[2])

    _, r2, losses = trained(tmp_path / "together", [16, 8], Objective(mutual=1.0))
    assert len(r2) == len(losses["labels"]) == 2
    assert min(r2) > 0.8
    assert 0 < losses["mutual"] < 2
