import json

import pytest
import timm
import torch

from supernet.artifacts.subnet import Subnet, SubnetConfig, load_subnet, save_subnet
from supernet.artifacts.timm_folder import KEYS
from supernet.families.named import make_family
from supernet.training.data import DataConfig, load_data

VIT = {"name": "vit_tiny_patch16_224", "embed_dim": [192], "num_heads": [3], "mlp_ratio": [4.0]}
SPACES = {
    "a model as it is": ("timm", {"name": "mobilenetv3_small_050", "input_size": 32}, "largest"),
    "fewer blocks": ("from_timm", {"name": "resnet18", "width": [1.0], "input_size": 32}, "smallest"),
    "a smaller transformer": ("vit", {**VIT, "depth": [2, 4], "resolution": [64]}, "smallest"),
}


def saved(folder, space, options, which):
    options = json.dumps(options)
    family = make_family(space, options, {"num_classes": 10})
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = family.build(getattr(family.space, which)).eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.fill_(0.1)
    config = SubnetConfig.of(space, options, getattr(family.space, which), load_data(DataConfig()))
    save_subnet(folder, Subnet(model, config), onnx=False)
    return model


@pytest.mark.parametrize("name", SPACES)
def test_timm_makes_the_same_network_of_the_folder(tmp_path, name):
    model = saved(tmp_path / "subnet", *SPACES[name])
    found = timm.create_model(f"local-dir:{tmp_path / 'subnet'}", pretrained=True).eval()
    loaded, config = load_subnet(tmp_path / "subnet")
    images = torch.rand(2, *config.input_size)
    with torch.inference_mode():
        assert torch.equal(found(images), model(images))
        assert torch.equal(loaded(images), model(images))
    data = timm.data.resolve_model_data_config(found)
    assert {name: data[name] for name in data if name in ("input_size", "interpolation", "crop_pct")} == {
        "input_size": config.prepared.input_size,
        "interpolation": config.prepared.interpolation,
        "crop_pct": config.prepared.crop_pct,
    }
    assert (tuple(data["mean"]), tuple(data["std"])) == (config.prepared.mean, config.prepared.std)
    assert found.pretrained_cfg["label_names"] == list(config.classes)


@pytest.mark.parametrize(("space", "options"), [("mobilenet_v3_micro", {}), ("vit", {**VIT, "num_heads": [2]})])
def test_what_timm_cannot_build_says_nothing_of_timm(tmp_path, space, options):
    if space == "vit":
        options = options | {"depth": [2], "resolution": [64]}
    saved(tmp_path / "subnet", space, options, "smallest")
    content = json.loads((tmp_path / "subnet" / "config.json").read_text())
    assert not set(content) & set(KEYS)
    assert load_subnet(tmp_path / "subnet").config.space == space
