import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from supernet.families import FAMILIES, from_timm
from supernet.families.torchvision_models import create_torchvision, todays_names


@pytest.mark.parametrize(("name", "parameters"), [("squeezenet1_1", 1_235_496), ("shufflenet_v2_x0_5", 1_366_792)])
def test_the_largest_subnet_is_torchvisions_model(name, parameters):
    family = from_timm(f"torchvision/{name}")
    largest = family.space.largest
    with torch.device("meta"):
        stock, model = torchvision.models.get_model(name, weights=None).eval(), family.build(largest)
        with FlopCounterMode(display=False) as counter:
            stock(torch.empty(1, 3, 224, 224))
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in stock.state_dict().items()}
    assert (family.macs(largest), family.parameters(largest)) == (counter.get_total_flops() // 2, parameters)
    assert (family.num_classes, family.resolution(largest)) == (1000, 224)


def test_subnets_run_on_small_images_of_other_channels():
    family = from_timm("torchvision/squeezenet1_1", num_classes=7, in_chans=1, input_size=32)
    net = family.supernet().eval()
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for arch in (family.space.smallest, family.space.largest):
        logits = net(images, arch)
        assert logits.shape == (2, 7)
        assert torch.equal(logits, net.extract(arch)(images))


def test_weights_come_from_a_file_and_are_adapted(tmp_path, caplog):
    stock = torchvision.models.shufflenet_v2_x0_5(weights=None)
    torch.save(stock.state_dict(), tmp_path / "weights.pth")
    weights = str(tmp_path / "weights.pth")
    family = FAMILIES["timm"]("torchvision/shufflenet_v2_x0_5", pretrained=weights)
    found = family.supernet().extract(family.space.largest).state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in stock.state_dict().items())
    family = FAMILIES["timm"]("torchvision/shufflenet_v2_x0_5", pretrained=weights, num_classes=5, in_chans=1)
    adapted = family.supernet().extract(family.space.largest)
    assert adapted.fc.weight.shape == (5, 1024)
    torch.testing.assert_close(adapted.conv1[0].weight, stock.conv1[0].weight.sum(1, keepdim=True))
    assert torch.equal(adapted.conv5[0].weight, stock.conv5[0].weight)
    assert "has no classifier for 5 classes" in caplog.text


def test_pretrained_weights_are_torchvisions(monkeypatch):
    stock = torchvision.models.squeezenet1_1(weights=None)
    asked = []

    def download(url, **options):
        asked.append(url)
        return stock.state_dict()

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", download)
    monkeypatch.setattr("supernet.families.timm_weights.check_reachable", lambda config, name: None)
    family = FAMILIES["timm"]("torchvision/squeezenet1_1", pretrained=True, input_size=32)
    model = family.supernet().extract(family.space.largest)
    assert asked == [torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url]
    assert torch.equal(model.classifier[1].weight, stock.classifier[1].weight)
    assert family.weights_classes(("a", "b"))[:2] == ("n01440764", "n01443537")  # ImageNet's


def test_former_names_and_auxiliary_classifiers_of_published_weights_are_understood():
    published = {"features.denseblock1.denselayer1.norm.1.weight": 1, "features.denseblock1.denselayer1.conv2.bias": 2}
    published |= {"features.norm0.weight": 3, "aux1.fc1.weight": 4, "AuxLogits.fc.bias": 5, "fc.bias": 6}
    assert todays_names(published, None) == {
        "features.denseblock1.denselayer1.norm1.weight": 1,
        "features.denseblock1.denselayer1.conv2.bias": 2,
        "features.norm0.weight": 3,
        "fc.bias": 6,
    }


def test_googlenet_has_one_output_in_training_and_renormalises_images():
    model = create_torchvision("googlenet", num_classes=3)
    assert model.transform_input
    assert model.train()(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
    assert not create_torchvision("googlenet", in_chans=1).transform_input


def test_dropout_is_what_is_asked_for():
    with torch.device("meta"):
        model = create_torchvision("vgg11", drop_rate=0.3)
    assert [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)] == [0.3, 0.3]
    family = FAMILIES["timm"]("torchvision/shufflenet_v2_x0_5", num_classes=2)
    with pytest.raises(ValueError, match="does not take drop_rate; set them to 0"):
        family.build(family.space.largest, drop_rate=0.1)


@pytest.mark.parametrize(("name", "similar"), [("squeezenet", "squeezenet1_1"), ("vit_b_16", "none")])
def test_other_names_are_refused(name, similar):
    with pytest.raises(ValueError, match=f"torchvision has no model for images of any size '{name}'; .*{similar}"):
        FAMILIES["timm"](f"torchvision/{name}")
