"""Weights of a teacher's layers that a job searches before its training."""

import dataclasses
import json

import pytest
import timm
import torch

from distill.objective import Objective
from supernet.artifacts.subnet import save_subnet
from supernet.training.aggregation import aggregated
from supernet.training.data import DataConfig, load_data
from supernet.training.execution import Execution
from supernet.training.loop.config import LoopConfig
from supernet.training.standalone import ModelJob, run_model_job

DATA = DataConfig(holdout=0.95, hflip=0.0, color_jitter=0.0)  # 71 images to train on
CONFIG = LoopConfig(epochs=1, batch_size=16, seed=3)
STUDENT = {"name": "test_resnet", "input_size": 32}


def job(teacher, **settings):
    options = {"space_options": json.dumps(STUDENT), "objective": Objective(hint=1.0)}
    settings = options | {"aggregation": "searched", "aggregation_epochs": 1} | settings
    execution = Execution("cpu", workers=0, eval_epochs=0)
    return ModelJob("timm", data=DATA, train=CONFIG, execution=execution, teacher=teacher, **settings)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The folder of a network with more blocks than the student has."""
    folder = tmp_path_factory.mktemp("teacher")
    options = json.dumps({"name": "resnet10t", "input_size": 32})
    labels = job(None, space_options=options, objective=Objective(), aggregation="last")
    save_subnet(folder / "model", run_model_job(labels, folder / "run"), onnx=False)
    return folder / "model"


def test_a_search_is_kept_and_the_model_has_no_more_tensors(teacher, tmp_path, monkeypatch):
    model = run_model_job(job(str(teacher)), tmp_path / "run").model
    assert model.state_dict().keys() == timm.create_model("test_resnet", num_classes=10).state_dict().keys()
    found = json.loads((tmp_path / "run" / "aggregation.json").read_text())
    assert found["epochs"] == 1
    for group in found["groups"]:
        assert sum(group["weights"]) == pytest.approx(1)
        assert len(group["weights"]) == len(group["teacher"])
    monkeypatch.setattr("supernet.training.aggregation.search_weights", None)  # searches no more
    again = run_model_job(job(str(teacher)), tmp_path / "run", resume=True).model
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_halves_of_the_images_have_none_in_common(monkeypatch, tmp_path):
    seen = []

    def search(student, teacher, group, train, held_out):
        halves = ([image for (images,), _ in part for image in images] for part in (train, held_out))
        seen.append([{image.numpy().tobytes() for image in half} for half in halves])
        return torch.full((len(group.teacher),), 1 / len(group.teacher))

    monkeypatch.setattr("supernet.training.aggregation.search_weights", search)
    data = load_data(dataclasses.replace(DATA, scale=(1.0, 1.0), ratio=(1.0, 1.0)), 0)
    torch.manual_seed(0)
    networks = [timm.create_model(name, num_classes=10) for name in ("resnet10t", "test_resnet")]
    aggregated(*networks, data, CONFIG, 32, "searched", 1, tmp_path, "cpu")
    for train, held_out in seen:
        assert len(train) == len(held_out) == 32
        assert not train & held_out


def test_what_does_not_go_with_a_mixture_is_refused():
    for settings in ({"objective": Objective(kl=1.0)}, {"objective": Objective(hint=1.0, layers=(("a", "b"),))}):
        with pytest.raises(ValueError, match="the aggregation searched mixes layers of a teacher"):
            job("resnet18", **settings)
