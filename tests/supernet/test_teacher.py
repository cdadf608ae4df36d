import json

import pytest
import timm
import torch
from torch import nn

from supernet.data import Data, DataConfig
from supernet.subnet import Subnet, SubnetConfig, save_subnet
from supernet.teacher import load_teacher, prepared


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
    options = json.dumps({"name": "mobilenetv3_small_050", "input_size": 32})
    data = Data(None, None, None, ("cat", "dog"), DataConfig())
    config = SubnetConfig.of("timm", options, {"resolution": 32}, data)
    save_subnet(tmp_path, Subnet(config.build(), config), onnx=False)
    load_teacher(tmp_path, DataConfig(), ("cat", "dog"))
    with pytest.raises(ValueError, match="tells other classes apart: cat, dog"):
        load_teacher(tmp_path, DataConfig(), ("dog", "cat"))
