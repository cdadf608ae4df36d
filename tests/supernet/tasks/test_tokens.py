"""Tokens to a class: a toy of classification without images."""

import json
from functools import partial

import pytest
import torch
from torch import nn

from search.evaluator import evaluate_here
from search.loop import ask_and_tell
from search.problem import Problem
from search.scores.accuracy import SupernetScore, held_out
from search.strategies import make_strategy
from supernet import Family, SearchSpace
from supernet.artifacts.export import export_onnx, onnx_runner
from supernet.evaluation import evaluate
from supernet.tasks import Classification
from supernet.training.data.tensors import TensorData
from supernet.training.execution import Execution
from supernet.training.step import TrainConfig
from supernet.training.train import train

LENGTH, VOCABULARY, CLASSES = 12, 16, 3


class Network(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.mixing = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens, mask=None):
        x = self.mixing(self.embedding(tokens))
        if mask is not None:
            x = x * mask[..., None]
        return self.head(x.mean(1))


class TokensToClass(Classification):
    input_names = ("tokens",)

    def inputs(self, batch, arch):
        return batch[:1]


def examples(count, seed):
    """The class is which of the tokens 0, 1 and 2 is there most often, the first one of several."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (count, LENGTH), generator=draw)
    counts = torch.stack([(tokens == token).sum(1) for token in range(CLASSES)], 1)
    return tokens, counts.argmax(1)


FAMILY = Family(
    SearchSpace({"width": (4, 8, 16), "hidden": (8, 16)}),
    lambda arch: Network(arch["width"], arch["hidden"]),
    CLASSES,
    task=TokensToClass(CLASSES),
    inputs=lambda arch: (torch.empty(1, LENGTH, dtype=torch.int64, device="meta"),),
)


def test_from_training_to_export(tmp_path):
    data = TensorData(examples(512, 0), examples(256, 1), examples(256, 2))
    config = TrainConfig(epochs=8, batch_size=32, opt="adamw", lr=0.08, weight_decay=0.0, distillation="adaptive_alpha")
    net = train(FAMILY, FAMILY.supernet(), data, config, tmp_path, Execution(eval_epochs=8)).eval()
    noted = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["accuracy"]
    assert noted["largest"] > 0.8  # where the most frequent class is half of them

    score = SupernetScore(net, FAMILY.task, partial(held_out, data, 1, 0, None), FAMILY.resolution)
    limits = {"macs": 12 * (2 * 8 * 16) + 3 * 8}
    problem = Problem(FAMILY.space, ["accuracy"], {"macs": lambda archs: [*map(FAMILY.macs, archs)]}, limits)
    result = ask_and_tell(problem, make_strategy("evolution", problem, 0, 3), evaluate_here({"accuracy": score}), 6)
    assert {e.arch for e in result.evaluations} == {
        arch for arch in FAMILY.space if FAMILY.macs(arch) <= limits["macs"]
    }
    best = max(result.evaluations, key=lambda evaluation: evaluation.scores["accuracy"])
    model = net.extract(best.arch)
    assert evaluate(model, FAMILY.task, [data.holdout])["accuracy"] == pytest.approx(best.scores["accuracy"])

    tokens, _ = data.test
    mask = (tokens < CLASSES).float()
    assert torch.equal(net(tokens, best.arch), model(tokens))
    assert torch.equal(net(tokens, arch=best.arch, mask=mask), model(tokens, mask=mask))
    assert not torch.equal(model(tokens, mask=mask), model(tokens))
    export_onnx(model, tmp_path / "model.onnx", FAMILY.example(best.arch), names=FAMILY.task, dynamic_batch=True)
    torch.testing.assert_close(onnx_runner(tmp_path / "model.onnx")(tokens), model(tokens).detach())
