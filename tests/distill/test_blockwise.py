import numpy as np
import pytest
import timm
import torch
from torch import nn

from distill.blockwise import BlockTrainer, BlockwiseConfig, Teacher, relative_deviation, relative_error


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
    with pytest.raises(ValueError, match="epochs is at least 1, not 0"):
        BlockwiseConfig(epochs=0)
    with pytest.raises(ValueError, match="lr is above 0"):
        BlockwiseConfig(lr=0)


class Scale(nn.Module):
    """A block whose path is a factor, so that what was drawn can be read."""

    class space:
        @staticmethod
        def sample(generator: np.random.Generator) -> int:
            return int(generator.integers(1, 3))

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.paths = []

    def forward(self, x, path, *, accumulate):
        self.paths.append(path)
        return x * self.weight * path


def test_rates_fall_by_the_epoch_and_paths_follow_from_the_step():
    students = {0: Scale(), 1: Scale()}
    trainer = BlockTrainer(students, BlockwiseConfig(lr=0.1, decay=0.5, weight_decay=0.0), steps_per_epoch=2)
    x = torch.arange(8.0)
    rates = []
    for step in range(5):
        trainer.step([x, x, 3 * x], step)
        rates.append(trainer._optimizers[0].param_groups[0]["lr"])
    assert rates == [0.1, 0.1, 0.05, 0.05, 0.025]
    again = Scale()
    BlockTrainer({1: again}, BlockwiseConfig(), 2).step([x, x, 3 * x], 4)
    assert again.paths == students[1].paths[4:]
    assert students[1].weight.item() > 1 > students[0].weight.item()  # each towards its own target


def test_blocks_draw_their_paths_apart():
    students, x = {0: Scale(), 1: Scale()}, torch.arange(8.0)
    features = [x, 3 * x, 9 * x]
    trainer = BlockTrainer(students, BlockwiseConfig(lr=1e-6), steps_per_epoch=2)
    for step in range(40):
        trainer.step(features, step)
    assert set(students[0].paths) == set(students[1].paths) == {1, 2}
    alike = sum(a == b for a, b in zip(students[0].paths, students[1].paths))
    assert 8 <= alike <= 32  # of 40; a half, and a standard deviation of 3
    # a step has the gradient of its own batch alone
    again = Scale()
    BlockTrainer({1: again}, BlockwiseConfig(lr=1e-6), steps_per_epoch=2).step(features, 39)
    torch.testing.assert_close(students[1].weight.grad, again.weight.grad, rtol=1e-3, atol=0.0)
