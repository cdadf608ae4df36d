import pytest
import timm
import torch
from torch import nn

from search.teachers import check_teacher, load_teacher
from supernet.families import FAMILIES
from supernet.subnet import Subnet, SubnetConfig, save_subnet


@pytest.fixture(scope="module")
def subnet(tmp_path_factory):
    """A folder with an extracted subnet for digits of 32 pixels."""
    family = FAMILIES["mobilenet_v3_micro"]()
    arch = family.space.largest
    classes = tuple("0123456789")
    config = SubnetConfig(
        "mobilenet_v3_micro", "{}", dict(arch), classes, (3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0
    )
    model = family.build(arch).eval()
    directory = tmp_path_factory.mktemp("teacher") / "subnet"
    save_subnet(directory, Subnet(model, config), onnx=False)
    return directory, model


def test_an_extracted_subnet_is_a_teacher(subnet):
    directory, model = subnet
    loaded = load_teacher(str(directory), 10, (3, 32, 32))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), model(x))


def test_a_model_of_timms_is_a_teacher(monkeypatch):
    asked = []

    def create(name, pretrained):  # without the download
        asked.append((name, pretrained))
        return original(name, pretrained=False, num_classes=10)

    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)
    load_teacher("mobilenetv3_small_050", 10, (3, 32, 32))
    assert asked == [("mobilenetv3_small_050", True)]


def test_unfit_teachers_are_named(subnet, tmp_path):
    directory, model = subnet
    with pytest.raises(ValueError, match="subnet is for images of 3 x 32 x 32, not 3 x 64 x 64"):
        load_teacher(str(directory), 10, (3, 64, 64))
    with pytest.raises(ValueError, match="has 10 classes, the images 7"):
        load_teacher(str(directory), 7, (3, 32, 32))
    with pytest.raises(ValueError, match=r"there is no teacher 'resnet1': .*, such as resnet10t, "):
        load_teacher("resnet1", 10, (3, 32, 32))
    with pytest.raises(ValueError, match=r"teacher x does not take images of 1 x 32 x 32: Given groups=1"):
        check_teacher(model, "x", 10, (1, 32, 32))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10))
    with pytest.raises(ValueError, match="does not take images of 3 x 32 x 32"):
        check_teacher(flat, "flat", 10, (3, 32, 32))
    with pytest.raises(ValueError, match="is no configuration of a subnet"):
        load_teacher(str(tmp_path), 10, (3, 32, 32))
