import pickle

import pytest
import timm
import torch

from supernet.families import FAMILIES, from_timm
from supernet.families.timm_models import timm_model


def test_its_one_architecture_is_the_stock_model():
    family = FAMILIES["timm"]("resnet18", num_classes=7, input_size=40)
    assert family.space.size == 1
    assert family.resolution(family.space.largest) == 40
    model, stock = family.build(family.space.largest), timm.create_model("resnet18", num_classes=7)
    assert type(model) is type(stock)
    stock.load_state_dict(model.state_dict())
    assert family.parameters(family.space.largest) == sum(p.numel() for p in stock.parameters())


@pytest.mark.parametrize(("name", "size"), [("resnet18", 64), ("vit_tiny_patch16_224", 224)])
def test_it_costs_what_the_elastic_family_counts_for_the_whole_model(name, size):
    one, elastic = FAMILIES["timm"](name, input_size=size), from_timm(name, input_size=size)
    assert one.macs(one.space.largest) == elastic.macs(elastic.space.largest)
    assert one.num_classes == elastic.num_classes == 1000


def test_a_model_that_is_not_elastic_is_one_all_the_same():
    family = FAMILIES["timm"]("gmlp_s16_224", num_classes=3)  # its gates fix every width
    assert family.build(family.space.largest)(torch.zeros(1, 3, 224, 224)).shape == (1, 3)


def test_weights_come_from_a_file(tmp_path):
    stock = timm.create_model("mobilenetv3_small_050", num_classes=5)
    torch.save(stock.state_dict(), tmp_path / "weights.pth")
    family = FAMILIES["timm"]("mobilenetv3_small_050", pretrained=str(tmp_path / "weights.pth"), num_classes=5)
    family = pickle.loads(pickle.dumps(family))
    for name, tensor in family.supernet().extract(family.space.largest).state_dict().items():
        assert torch.equal(tensor, stock.state_dict()[name]), name


def test_an_unknown_name_and_an_unknown_option_are_named():
    with pytest.raises(ValueError, match=r"timm has no model 'resnet19'; similar ones: resnet"):
        FAMILIES["timm"]("resnet19")
    for options, message in (({"name": 3}, "name is that of a model"), ({"input_size": -3}, "at least 1, not -3")):
        for make in (FAMILIES["timm"], FAMILIES["from_timm"]):
            with pytest.raises(ValueError, match=message):
                make(**{"name": "resnet18", **options})
    family = FAMILIES["timm"]("vgg11", num_classes=2, input_size=32)
    with pytest.raises(ValueError, match=r"does not take drop_path_rate; set them to 0"):
        family.build(family.space.largest, drop_path_rate=0.1)
    with pytest.raises(ValueError, match="'subnets/mine' is neither a folder with a subnet nor a model's name"):
        timm_model("subnets/mine")
