"""All of timm's public methods work on what is taken out of a supernet."""

import copy

import pytest
import timm
import torch
from timm.models._features import FeatureGetterNet
from timm.utils import reparameterize_model
from torch import nn

from supernet.families import FAMILIES, from_timm
from supernet.families.traced.kept_sizes import keep_sizes

MODELS = (
    *(
        "resnet18",
        "regnety_002",
        "mobilenetv3_small_050",
        "efficientnet_b0",
        "ghostnet_050",
        "mobilenetv4_conv_small_035",
    ),
    *("convnext_atto", "repvgg_a0", "fastvit_t8", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"),
)
OWN = ("ofa_mobilenet_v3", "ofa_resnet50", "autoformer_tiny")


def smallest(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The smallest subnet of a space, with BatchNorm statistics other than the initial ones, and two images."""
    if name in OWN:
        family = FAMILIES[name](num_classes=7)
    else:
        family = from_timm(name, num_classes=7, input_size=None if "patch16" in name else 64)
    torch.manual_seed(0)
    model = family.build(family.space.smallest).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    size = 64 if "resolution" in family.space.choices else family.input_size
    return model, torch.randn(2, 3, size, size)


@pytest.mark.parametrize("name", [*MODELS, *OWN])
def test_timms_public_methods_work_on_the_smallest_subnet(name):
    model, x = smallest(name)
    with torch.no_grad():
        logits, features = model(x), model.forward_features(x)
        assert torch.equal(model.forward_head(features), logits)
        assert features.shape[-1 if features.dim() == 3 else 1] == model.num_features
        assert model.forward_head(features, pre_logits=True).shape[-1] == model.head_hidden_size

        assert [info["num_chs"] for info in model.feature_info] == channels_of_features(model, x)
        count = len(model.feature_info)
        backbone = FeatureGetterNet(copy.deepcopy(model), out_indices=count)  # as `features_only` makes one
        assert [output.shape[1] for output in backbone(x)] == backbone.feature_info.channels()
        assert len(backbone.feature_info.channels()) == count
        last, intermediates = model.forward_intermediates(x)
        assert last.shape == features.shape
        assert intermediates[-1].shape[1] == model.feature_info[-1]["num_chs"]

        merged = reparameterize_model(model)
        assert (merged(x) - logits).abs().max() <= 1e-4 * logits.abs().max()

        other = copy.deepcopy(model)
        other.reset_classifier(5)
        assert other(x).shape == (2, 5)
        other.reset_classifier(0)
        assert other(x).shape == (2, model.head_hidden_size)
        other.reset_classifier(3)
        assert other(x).shape == (2, 3)

    model.set_grad_checkpointing(True)
    model.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def channels_of_features(model: nn.Module, x: torch.Tensor) -> list[int]:
    """How many there are in what the modules that `feature_info` names put out."""
    found: dict[str, torch.Tensor] = {}
    hooks = [
        model.get_submodule(info["module"]).register_forward_hook(
            lambda module, args, output, name=info["module"]: found.update({name: output})
        )
        for info in model.feature_info
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    outputs = [found[info["module"]] for info in model.feature_info]
    return [output.shape[-1 if output.dim() == 3 else 1] for output in outputs]


def test_features_of_a_block_that_is_gone_are_those_of_the_last_one_left():
    """Those of a stage may lie within its last block; a ViT has some of every block."""

    def shorten(model):
        del (model.blocks if isinstance(model, timm.models.VisionTransformer) else model.blocks[1])[1:]
        return model

    model = timm.create_model("efficientnet_b0")
    model.feature_info[1]["module"] = "blocks.1.1.conv_pwl"
    assert keep_sizes(model, shorten).feature_info[1]["module"] == "blocks.1.0.conv_pwl"

    vit = timm.create_model("vit_tiny_patch16_224", depth=4)
    vit = keep_sizes(vit, shorten)
    assert [info["module"] for info in vit.feature_info] == ["blocks.0"]


def test_a_model_that_is_not_narrowed_keeps_every_number():
    for name in ("mobilenetv3_small_050", "fastvit_t8", "convnext_atto"):
        model = timm.create_model(name)
        before = {name: copy.deepcopy(numbers(module)) for name, module in model.named_modules()}
        assert {
            name: numbers(module) for name, module in keep_sizes(model, lambda model: model).named_modules()
        } == before


def numbers(module: nn.Module) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if isinstance(value, int | list | tuple)}


def test_what_is_not_timms_is_left_alone():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_features = 8
            self.conv = nn.Conv2d(3, 8, 1)

    def reduce(model):
        model.conv = nn.Conv2d(3, 4, 1)
        return model

    assert keep_sizes(Own(), reduce).num_features == 8


def test_features_of_a_module_that_a_model_does_not_have_stay_as_they_are():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1))
    model.feature_info = [{"module": "stem", "num_chs": 64, "reduction": 2}]
    assert keep_sizes(model, lambda whole: whole).feature_info == model.feature_info
