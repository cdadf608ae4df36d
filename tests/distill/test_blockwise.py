import pytest
import timm
import torch
from torch import nn

from distill.blockwise import Teacher, answer, counted, relative_deviation, relative_error, spread


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


@pytest.mark.parametrize("tokens", [False, True])
def test_an_answer_begins_with_the_mean_of_each_channel(tokens):
    draw = torch.Generator().manual_seed(0)
    shape, dims = ((6, 9, 5), (0, 1)) if tokens else ((6, 5, 3, 3), (0, 2, 3))
    own, channels = (1, 1, 5) if tokens else (1, 5, 1, 1), torch.arange(5.0)
    target = 30 * (torch.randn(shape, generator=draw) + channels.view(own))
    layers = nn.Sequential(answer(4, 5, tokens=tokens))
    layers.get_submodule("spread").load_state_dict(spread(target))
    x = torch.randn(6, 9, 4) if tokens else torch.randn(6, 4, 3, 3)
    mean = target.mean(dims, keepdim=True)
    torch.testing.assert_close(layers(x), mean.expand(shape))
    assert relative_error(layers(x), target).item() == pytest.approx(((target - mean) ** 2).mean() / target.var())
    with torch.no_grad():
        layers.get_submodule("1").bias.fill_(0.5)  # in units of the deviation
    torch.testing.assert_close(layers(x), (mean + 0.5 * target.std()).expand(shape))


def test_features_that_a_mask_leaves_out_do_not_count():
    features, mask = torch.arange(12.0).view(2, 3, 2), torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert counted(features, mask).tolist() == [[0, 1], [2, 3], [6, 7]]
    assert counted(features, None) is features


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


def test_tokens_stay_tokens_where_grids_are_not_wanted():
    """With the class token; and those of texts always, whatever their number."""
    model = timm.create_model("test_vit", pretrained=False)
    images = torch.zeros(1, 3, 160, 160)
    (whole,), (patches,) = (Teacher(model, grids=grids)(images) for grids in (False, True))
    assert whole.shape == (1, 101, 64)
    assert torch.equal(whole[:, 1:].transpose(1, 2).reshape(1, 64, 10, 10), patches)
    text = nn.Sequential(nn.Embedding(5, 3))
    assert Teacher(text, ("0",))(torch.zeros(2, 4, dtype=torch.int64))[0].shape == (2, 4, 3)


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
    with pytest.raises(ValueError, match=r"does not take inputs of \[8\] and \[8\]"):
        Teacher(model, ("0",))(torch.zeros(2, 8), torch.ones(2, 8))
    pair = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 1))
    pair.forward = lambda x: pair[1](x, x, x)[0]
    with pytest.raises(ValueError, match="'1' puts out no single tensor: name other points"):
        Teacher(pair, ("1",))(torch.zeros(2, 3, 4))
