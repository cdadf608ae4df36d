import pytest
import timm
import torch
from torch import nn

from distill.blockwise import Teacher, relative_deviation, relative_error


def test_errors_are_in_units_of_the_targets_spread():
    target = torch.tensor([[1.0, 3.0], [5.0, 7.0]])  # mean 4, variance 20/3
    assert relative_error(target + 2, target).item() == pytest.approx(4 / (20 / 3))
    assert relative_deviation(target - 2, target).item() == pytest.approx(2 / (20 / 3) ** 0.5)
    for loss in (relative_error, relative_deviation):
        assert loss(target, target) == 0
        assert loss(10 * target + 20, 10 * target).item() == pytest.approx(loss(target + 2, target).item())


def test_answering_the_mean_is_an_error_of_one():
    target = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert relative_error(target.mean().expand(1000), target).item() == pytest.approx(0.999)


def test_a_constant_target_gives_a_finite_error():
    assert relative_error(torch.ones(3), torch.zeros(3)).isfinite()
    with pytest.raises(ValueError, match=r"student's features are \[2\] and the teacher's \[3\]"):
        relative_error(torch.ones(2), torch.ones(3))


@pytest.mark.parametrize(
    ("name", "size", "shapes"),
    [
        ("resnet10t", 64, [(64, 32), (64, 16), (128, 8), (256, 4), (512, 2)]),
        ("mobilenetv3_small_050", 64, [(16, 32), (8, 16), (16, 8), (24, 4), (288, 2)]),
        ("test_vit", 160, [(64, 10)]),
        ("swin_tiny_patch4_window7_224", 224, [(96, 56), (192, 28), (384, 14), (768, 7)]),
    ],
)
def test_features_of_timms_models_are_maps(name, size, shapes):
    model = timm.create_model(name, pretrained=False)
    teacher = Teacher(model)
    with torch.device("meta"):
        model.to("meta")
        features = teacher(torch.zeros(1, 3, size, size))
    assert [(f.shape[1], f.shape[2]) for f in features] == shapes
    assert all(f.shape[2] == f.shape[3] for f in features)


def test_features_are_those_of_the_modules():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    x = torch.randn(2, 3, 8, 8)
    first, second = Teacher(model, ("0", "2"))(x)
    assert torch.equal(second, model(x))
    assert torch.equal(first, model[0](x))
    assert not second.requires_grad
    assert not any(module._forward_hooks for module in model.modules())


def test_bad_teachers_are_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    with pytest.raises(ValueError, match="Sequential does not say where its features are"):
        Teacher(model)
    with pytest.raises(ValueError, match="the teacher has no module '7'; it has 0, 1"):
        Teacher(model, ("7",))
    with pytest.raises(ValueError, match=r"does not take images of \[1, 8, 8\]"):
        Teacher(model, ("0",))(torch.zeros(2, 1, 8, 8))
    pair = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 1))
    pair.forward = lambda x: pair[1](x, x, x)[0]
    with pytest.raises(ValueError, match="'1' puts out no single tensor: name other points"):
        Teacher(pair, ("1",))(torch.zeros(2, 3, 4))
