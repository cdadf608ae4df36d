import pytest
import timm
import torch
from torch import nn

from distill.layers import recorded, stages


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnet10t"])
def test_stages_are_timms_features_only(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    features_only = timm.create_model(name, features_only=True).eval()
    features_only.load_state_dict(model.state_dict(), strict=False)  # it has no head
    images = torch.randn(2, 3, 64, 64)
    found = stages(model)
    with torch.no_grad(), recorded(model, found.values()) as outputs:
        model(images)
    assert list(found) == features_only.feature_info.reduction()
    for name, expected in zip(found.values(), features_only(images)):
        assert torch.equal(outputs[name], expected)


def test_a_module_may_be_named_and_leaves_no_hook():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    x = torch.randn(4, 2)
    with recorded(model, ["0"]) as outputs:
        y = model(x)
    assert torch.equal(outputs["0"].relu(), y)
    assert outputs["0"].requires_grad
    assert not model[0]._forward_hooks
    model(x + 1)
    assert torch.equal(outputs["0"].relu(), y)


def test_what_is_not_there_is_named():
    model = nn.Sequential(nn.Linear(2, 3))
    with pytest.raises(ValueError, match="has no module 'stem'; the outermost are 0"), recorded(model, ["stem"]):
        pass
    with pytest.raises(
        ValueError, match=r"Sequential does not say where its features are \(timm's feature_info\): name the modules"
    ):
        stages(model)


def test_what_is_recorded_stays_as_it_was_put_out():
    """The layer behind it may work in place."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    with recorded(model, ["0", "1"]) as outputs:
        y = model(x)
    assert torch.equal(outputs["0"], model[0](x))
    assert torch.equal(outputs["1"], model[0](x).relu())
    (y.sum() + outputs["0"].square().sum()).backward()  # differentiably
