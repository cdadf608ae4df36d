"""A segmentation map of images in several resolutions: a toy of a task whose output is a tree."""

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
from supernet.artifacts.export import export_program, program_runner
from supernet.evaluation import calibrated, evaluate
from supernet.tasks import Task
from supernet.training.cohort import train_models
from supernet.training.data import resize
from supernet.training.data.tensors import TensorData
from supernet.training.execution import Execution
from supernet.training.loop.config import LoopConfig
from supernet.training.step import TrainConfig
from supernet.training.train import train


class Network(nn.Module):
    def __init__(self, width, kernel_size):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(width, width, kernel_size, padding=kernel_size // 2), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.map, self.area = nn.Conv2d(width, 2, 1), nn.Linear(width, 1)

    def forward(self, images):
        features = self.body(self.stem(images))
        return {"map": self.map(features), "area": self.area(features.mean((2, 3)))}


class Segmentation(Task):
    """Whether each pixel is of the object, and beside that which part of all pixels is."""

    input_names, output_names = ("images",), ("map", "area")

    def inputs(self, batch, arch):
        return (batch["images"] if arch is None else resize(batch["images"], arch["resolution"]),)

    def loss(self, output, batch):
        logits = F.interpolate(output["map"], batch["map"].shape[1:], mode="bilinear")
        area = batch["map"].float().mean((1, 2))[:, None]
        return F.cross_entropy(logits, batch["map"]) + F.mse_loss(output["area"], area)

    def distil(self, output, teacher_output, batch):
        taught = F.interpolate(teacher_output["map"], output["map"].shape[2:], mode="bilinear").softmax(1)
        return F.cross_entropy(output["map"], taught) + F.mse_loss(output["area"], teacher_output["area"])

    def metrics(self, outputs, batches):
        """Intersection over union of all objects, from 0 to 1."""
        both = either = 0
        for output, batch in zip(outputs, batches):
            wanted = batch["map"].bool()
            found = F.interpolate(output["map"], wanted.shape[1:], mode="bilinear").argmax(1).bool()
            both, either = both + (found & wanted).sum().item(), either + (found | wanted).sum().item()
        return {"iou": both / max(either, 1)}


def examples(count, seed):
    """Squares of 8 pixels, brighter than the noise that they are in."""
    draw = torch.Generator().manual_seed(seed)
    places, maps = torch.randint(9, (count, 2), generator=draw), torch.zeros(count, 16, 16, dtype=torch.int64)
    for (top, left), own in zip(places.tolist(), maps):
        own[top : top + 8, left : left + 8] = 1
    return {"images": maps[:, None] + 0.3 * torch.randn(count, 1, 16, 16, generator=draw), "map": maps}


SPACE = SearchSpace({"resolution": (12, 16), "width": (4, 8), "kernel_size": (3, 5)})
FAMILY = Family(SPACE, lambda arch: Network(arch["width"], arch["kernel_size"]), in_chans=1, task=Segmentation())


def test_from_training_to_export(tmp_path):
    data = TensorData(examples(192, 0), examples(64, 1), examples(64, 2))
    config = TrainConfig(epochs=4, batch_size=16, accumulation=2, lr=0.8)
    net = train(FAMILY, FAMILY.supernet(), data, config, tmp_path, Execution(eval_epochs=4, log_steps=48)).eval()
    noted = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["iou"]
    assert noted["largest"] > 0.7  # where all pixels taken for the object give 0.25

    score = SupernetScore(net, FAMILY.task, partial(held_out, data, 192, 0, None), FAMILY.resolution)
    problem = Problem(SPACE, ["iou"], {"macs": lambda archs: [*map(FAMILY.macs, archs)]}, {}, ["iou", "macs"])
    result = ask_and_tell(problem, make_strategy("evolution", problem, 0, 4), evaluate_here({"iou": score}), 8)
    assert {e.arch for e in result.evaluations} == set(SPACE)
    best = max(result.evaluations, key=lambda evaluation: evaluation.scores["iou"])
    calibration = [FAMILY.task.inputs(batch, best.arch) for batch in data.calibration_batches(None, 192, 0)]
    model = calibrated(net, best.arch, calibration)
    assert evaluate(model, FAMILY.task, [data.holdout], best.arch)["iou"] == pytest.approx(best.scores["iou"])

    (images,) = FAMILY.task.inputs(data.test, best.arch)
    own, plain = net(images, best.arch), net.extract(best.arch)(images)
    assert all(torch.equal(own[name], plain[name]) for name in ("map", "area"))
    export_program(model, tmp_path / "model.pt2", FAMILY.example(best.arch))
    torch.testing.assert_close(program_runner(tmp_path / "model.pt2")(images), model(images))


def test_a_model_learns_from_a_peer_that_sees_smaller_images(tmp_path):
    data, objective = TensorData(examples(192, 0), examples(64, 1), examples(64, 2)), Objective(mutual=1.0)
    config = LoopConfig(epochs=4, batch_size=16, lr=0.8, warmup_epochs=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = [Network(8, 5), Network(8, 3)]
    execution = Execution(eval_epochs=4, log_steps=48)
    found = train_models(models, [16, 12], data, config, tmp_path, objective, task=FAMILY.task, execution=execution)
    noted = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["iou"]
    archs = [{"resolution": resolution} for resolution in (16, 12)]
    assert noted == [evaluate(own, FAMILY.task, [data.holdout], arch)["iou"] for own, arch in zip(found, archs)]
    assert min(noted) > 0.6
