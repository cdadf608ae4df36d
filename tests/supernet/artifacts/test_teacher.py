import copy
import dataclasses
import json

import pytest
import timm
import torch
from timm.data import ImageNetInfo
from torch import nn

from distill.blockwise import Teacher
from search.blockwise.features import finer_features
from search.prefix.pieces import cut
from search.scores import judges
from search.settings import SearchJob
from supernet.artifacts.runs import Job, load_run, run_job
from supernet.artifacts.subnet import Subnet, SubnetConfig, save_subnet, take_out
from supernet.artifacts.teacher import load_teacher
from supernet.families.timm_models import TimmModel
from supernet.training.data import DataConfig, ImageData, resize
from supernet.training.execution import Execution
from supernet.training.prepared import prepared
from supernet.training.step import TrainConfig


def test_images_arrive_in_the_teachers_normalisation_and_size():
    data = DataConfig(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))
    pixels = torch.rand(2, 3, 8, 8)
    images = (pixels - torch.tensor(data.mean).view(3, 1, 1)) / torch.tensor(data.std).view(3, 1, 1)
    teacher = prepared(nn.Identity(), data, 8, (0.1, 0.2, 0.3), (1.0, 0.5, 0.5))
    expected = (pixels - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([1.0, 0.5, 0.5]).view(3, 1, 1)
    torch.testing.assert_close(teacher(images), expected)
    assert prepared(nn.Identity(), data, 16, data.mean, data.std)(images).shape == (2, 3, 16, 16)
    assert torch.equal(prepared(nn.Identity(), data, 8, data.mean, data.std)(images), images)


def test_a_timm_teacher_comes_with_weights_from_a_file_and_is_frozen(tmp_path):
    stock = timm.create_model("resnet10t", num_classes=4).eval()
    torch.save(stock.state_dict(), tmp_path / "weights.pth")
    teacher = load_teacher("resnet10t", DataConfig(), "abcd", tmp_path / "weights.pth", 40)
    images = torch.randn(2, 3, 40, 40)
    assert torch.equal(teacher(images), stock(images))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.training


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match="timm has no model 'resnet19'"):
        load_teacher("resnet19", DataConfig(), "abcd")
    with pytest.raises(ValueError, match="is no configuration of a subnet"):
        load_teacher(tmp_path, DataConfig(), "abcd")
    with pytest.raises(ValueError, match=r"has weights of its own; leave out more\.pth"):
        load_teacher(tmp_path, DataConfig(), "abcd", "more.pth")


def test_a_saved_teacher_of_as_many_other_classes_is_refused(tmp_path):
    options = json.dumps({"name": "test_efficientnet", "input_size": 32})
    data = ImageData(None, None, None, ("cat", "dog"), DataConfig())
    config = SubnetConfig.of("timm", options, {"resolution": 32}, data)
    save_subnet(tmp_path, Subnet(config.build(), config), onnx=False)
    load_teacher(tmp_path, DataConfig(), ("cat", "dog"))
    for others in (("dog", "cat"), ("car", "bus"), ("cat", "dog", "owl")):
        with pytest.raises(ValueError, match=r"tells other classes apart: cat, dog \(2\), where .* order, "):
            load_teacher(tmp_path, DataConfig(), others)
        load_teacher(tmp_path, DataConfig(), others, by_logits=False)
    with pytest.raises(ValueError, match="is for images of 32 pixels, not 64"):
        load_teacher(tmp_path, DataConfig(), ("cat", "dog"), input_size=64)


def test_timms_own_classes_are_known_by_name(monkeypatch):
    monkeypatch.setattr(TimmModel, "load", lambda self, *args, **options: self.create())  # without the download
    names = tuple(ImageNetInfo().label_names())
    load_teacher("test_resnet", DataConfig(), names)
    for others in (names[::-1], [f"product {index}" for index in range(1000)], "abcd"):
        with pytest.raises(ValueError, match="the teacher test_resnet tells other classes apart: n01440764, "):
            load_teacher("test_resnet", DataConfig(), others)
        load_teacher("test_resnet", DataConfig(), others, by_logits=False)


def test_features_are_those_of_the_teachers_own_images():
    """What DNA and P+TG compare, also where a network is cut into its steps."""
    torch.manual_seed(0)
    model, data = timm.create_model("resnet10t", num_classes=4).eval(), DataConfig(mean=(0.5,) * 3, std=(0.25,) * 3)
    pixels, own = torch.rand(2, 3, 48, 48), ((0.1, 0.2, 0.3), (0.9, 0.8, 0.7))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in own)
    points = ("layer1", "layer3")
    expected = Teacher(copy.deepcopy(model), points)(resize((pixels - mean) / std, 32))
    teacher = Teacher(prepared(model, data, 32, *own), points)
    images = (pixels - 0.5) / 0.25
    for found, feature in zip(teacher(images), expected):
        torch.testing.assert_close(found, feature, rtol=1e-4, atol=1e-4)
    sizes = {feature.name: feature.size for feature in finer_features(teacher, (images,))}
    assert sizes["layer1"] == (8, 8)
    assert sizes["layer3"] == (2, 2)
    assert len(sizes) > 2
    first, *_ = cut(model)
    torch.testing.assert_close(first(images), resize((pixels - mean) / std, 32), rtol=1e-4, atol=1e-4)


def test_a_run_teaches_by_its_largest_subnet_and_images_arrive_in_its_normalisation(tmp_path):
    own = DataConfig(holdout=0.99, mean=(0.5,) * 3, std=(0.5,) * 3)  # a step
    job = Job(data=own, train=TrainConfig(epochs=1, batch_size=8), execution=Execution(workers=0, eval_epochs=0))
    run = run_job(job, tmp_path)
    model = take_out(load_run(tmp_path), run.family.space.largest).model
    data = DataConfig(mean=(0.2, 0.3, 0.4), std=(1.0, 0.5, 0.25))
    teacher = load_teacher(tmp_path, data, tuple("0123456789"))
    pixels = torch.rand(4, 3, 32, 32)
    images = (pixels - torch.tensor(data.mean).view(3, 1, 1)) / torch.tensor(data.std).view(3, 1, 1)
    torch.testing.assert_close(teacher(images), model((pixels - 0.5) / 0.5), rtol=1e-4, atol=1e-4)
    assert (teacher(images) - model(images)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="tells other classes apart: 0, 1, 2, 3, 4, "):
        load_teacher(tmp_path, data, tuple("9876543210"))
    search = SearchJob(score="rdm", teacher=str(tmp_path))
    other = run._replace(data=dataclasses.replace(run.data, config=data))
    torch.testing.assert_close(judges._teacher(search, other)(images), teacher(images))
    with pytest.raises(ValueError, match="tells other classes apart"):
        judges._teacher(search, other._replace(data=dataclasses.replace(run.data, classes=tuple("9876543210"))))
