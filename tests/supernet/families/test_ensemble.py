"""An ensemble is saved, loaded, exported, measured and learnt from like any subnet."""

import json

import pytest
import torch

from supernet.artifacts.subnet import Subnet, SubnetConfig, load_subnet, onnx_difference, save_subnet
from supernet.artifacts.teacher import load_teacher
from supernet.costs import count_macs, count_parameters
from supernet.families import FAMILIES
from supernet.families.named import make_family
from supernet.training.data import DataConfig, load_data

ARCH = dict(FAMILIES["mobilenet_v3_micro"](num_classes=10).space.smallest) | {"resolution": 24}
TIMM = {"space": "timm", "options": {"name": "mobilenetv3_small_050", "input_size": 24}}
MEMBERS = [{"space": "mobilenet_v3_micro", "arch": ARCH}, TIMM]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble") / "pair"
    data = load_data(DataConfig())
    options = json.dumps({"members": MEMBERS})
    family = make_family("ensemble", options, data.family_arguments)
    torch.manual_seed(0)
    model = family.build(family.space.largest).eval()
    model.weights.copy_(torch.tensor([0.25, 0.75]))
    save_subnet(folder, Subnet(model, SubnetConfig.of("ensemble", options, family.space.largest, data)))
    return folder, model, data


def test_it_loads_as_it_was(saved):
    folder, model, _ = saved
    loaded, config = load_subnet(folder)
    images = torch.randn(2, 3, 24, 24)
    assert torch.equal(loaded(images), model(images))
    assert torch.equal(loaded(images), 0.25 * model.members[0](images) + 0.75 * model.members[1](images))
    assert config.facts["macs"] == count_macs(model, (3, 24, 24))
    assert config.facts["parameters"] == count_parameters(model) == sum(map(count_parameters, model.members))


def test_its_onnx_file_is_the_sum(saved):
    folder, model, _ = saved
    assert onnx_difference(folder, model, torch.randn(3, 3, 24, 24)) < 1e-4


def test_it_teaches(saved):
    folder, model, data = saved
    teacher = load_teacher(folder, data.config, data.classes)
    images = torch.randn(2, 3, 24, 24)
    assert torch.equal(teacher(images), model(images))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "one size, not of"),
        ([{"space": "mine:family"}], "a space of this package, not of 'mine:family'"),
        ([{"arch": ARCH}], "not of None"),
        ([MEMBERS[0], {"space": "mobilenet_v3_micro"}], r"\[24, 32\] pixels"),
    ],
)
def test_what_does_not_go_together_is_refused(members, message):
    with pytest.raises(ValueError, match=message):
        FAMILIES["ensemble"](members, num_classes=10)
