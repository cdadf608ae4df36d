import logging
import math

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, StdConv2d
from torch import nn

from search.untrained.ntk import condition_number, linear_regions, tangent_kernel
from supernet.families.nas_bench_201 import nasbench201

MODES = ("batch", "frozen")


def images_of(rows) -> torch.Tensor:
    return torch.tensor(rows)[:, None, None]


def convolutional(batch_norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4) if batch_norm else nn.Identity()
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 2)
    )
    return net.double()


@pytest.fixture
def images():
    return torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def weights_of(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if name.endswith("weight")]


def gram(rows) -> torch.Tensor:
    jacobian = torch.stack([torch.cat([gradient.flatten() for gradient in row]) for row in rows])
    return jacobian @ jacobian.T


@pytest.mark.parametrize("mode", MODES)
def test_kernel_of_a_linear_layer_is_the_images_products_for_each_output(mode):
    images = images_of([[1.0, 2.0], [0.0, 1.0], [3.0, 1.0]])
    rows = images.flatten(1).double()
    kernel = tangent_kernel(nn.Sequential(nn.Flatten(), nn.Linear(2, 4)), images, mode)
    torch.testing.assert_close(kernel, 4 * rows @ rows.T)
    assert kernel.dtype == torch.float64


def test_batch_kernel_runs_through_the_statistics_of_the_batch(images):
    model = convolutional()
    kernel = tangent_kernel(model, images, "batch")
    model.train()
    model[5].eval()
    answers = model(images).sum(dim=1)
    expected = gram([torch.autograd.grad(answer, weights_of(model), retain_graph=True) for answer in answers])
    torch.testing.assert_close(kernel, expected)


def test_frozen_kernel_holds_the_statistics_of_the_batch(images):
    model = convolutional()
    kernel = tangent_kernel(model, images, "frozen")
    features = model[0](images)
    variance, mean = torch.var_mean(features, dim=(0, 2, 3), correction=0)
    model[1].running_mean, model[1].running_var = mean.detach(), variance.detach()
    model.eval()
    expected = gram([torch.autograd.grad(model(image[None]).sum(), weights_of(model)) for image in images])
    torch.testing.assert_close(kernel, expected)
    assert not torch.allclose(kernel, tangent_kernel(model, images, "batch"))


class Frozen(nn.Module):
    """A BatchNorm layer with the statistics of given features."""

    def __init__(self, norm: nn.Module, features: torch.Tensor):
        super().__init__()
        self.norm = norm
        dims = [0, *range(2, features.dim())]
        self.variance, self.mean = (part.detach() for part in torch.var_mean(features, dims, correction=0))

    def forward(self, x):
        norm = self.norm
        x = F.batch_norm(x, self.mean, self.variance, norm.weight, norm.bias, eps=norm.eps)
        return norm.act(x) if hasattr(norm, "act") else x


@pytest.mark.parametrize(
    ("norm", "unflatten"),
    [
        (nn.BatchNorm2d(4, track_running_stats=False), (4, 4, 4)),
        (BatchNormAct2d(4, eps=0.1), (4, 4, 4)),
        (nn.BatchNorm2d(4, affine=False), (4, 4, 4)),
        (nn.BatchNorm1d(64), (64,)),
        (nn.BatchNorm1d(4), (4, 16)),
        (nn.BatchNorm3d(4), (4, 2, 2, 4)),
    ],
)
def test_frozen_kernel_of_every_batch_norm(norm, unflatten, images):
    torch.manual_seed(0)
    shape = nn.Unflatten(1, unflatten)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), shape, norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    model.double()
    expected_model = nn.Sequential(*model[:3], Frozen(norm, model[:3](images)), *model[4:]).eval()
    rows = [torch.autograd.grad(expected_model(image[None]).sum(), weights_of(expected_model)) for image in images]
    torch.testing.assert_close(tangent_kernel(model, images, "frozen"), gram(rows))


def test_a_layer_that_runs_twice_is_frozen_at_both_places(images):
    torch.manual_seed(0)
    norm, conv, head = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3), [nn.Flatten(), nn.Linear(48, 2)]
    model = nn.Sequential(norm, conv, norm, *head).double()
    places = [Frozen(norm, images), conv]
    places.append(Frozen(norm, nn.Sequential(*places)(images)))
    expected_model = nn.Sequential(*places, *head).eval()
    weights = [norm.weight, conv.weight, head[-1].weight]
    rows = [torch.autograd.grad(expected_model(image[None]).sum(), weights) for image in images]
    torch.testing.assert_close(tangent_kernel(model, images, "frozen"), gram(rows))


def test_standardised_weights_are_not_frozen(images):
    # timm computes them by batch_norm, which is no normalisation of the images
    torch.manual_seed(0)
    model = nn.Sequential(StdConv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).double()
    torch.testing.assert_close(tangent_kernel(model, images, "batch"), tangent_kernel(model, images, "frozen"))


def test_a_batch_norm_that_cannot_be_frozen_is_named(images):
    class Own(nn.BatchNorm2d):
        def forward(self, x):
            return x / x.std()

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Own(4), nn.Flatten(), nn.Linear(64, 2)).double()
    with pytest.raises(ValueError, match="a Own does not normalise by"):
        tangent_kernel(model, images, "frozen")


def test_both_ways_agree_without_batch_norm(images):
    model = convolutional(batch_norm=False)
    torch.testing.assert_close(tangent_kernel(model, images, "batch"), tangent_kernel(model, images, "frozen"))


@pytest.mark.parametrize("mode", MODES)
def test_condition_number_by_hand(mode):
    # orthogonal images of lengths 1, 2 and 3: eigenvalues 1, 4 and 9 times the outputs
    images = images_of([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 7))
    assert condition_number(model, images, mode) == pytest.approx(9)
    assert condition_number(model, images[:1], mode) == 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("rows", "reason"), [([[1.0, 2.0], [2.0, 4.0]], "singular"), ([[1.0, math.inf], [2.0, 4.0]], "not finite")]
)
def test_what_cannot_be_trained_gets_the_worst_number_and_a_reason(mode, rows, reason, caplog):
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3))
    with caplog.at_level(logging.WARNING):
        assert condition_number(model, images_of(rows), mode) == 1e30
    assert reason in caplog.text


@pytest.mark.parametrize("mode", MODES)
def test_measures_a_published_space(mode):
    family = nasbench201(channels=3, cells=1)
    torch.manual_seed(0)
    model = family.build(family.space.largest)
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    value = condition_number(model, images, mode)
    assert 1 < value < 1e6
    assert condition_number(model, images, mode) == value


def test_regions_of_a_line_with_three_kinks():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 3), nn.ReLU())
    model[1].weight.data.fill_(1)
    model[1].bias.data = torch.tensor([0.0, -1.0, -2.0])
    images = torch.linspace(-1, 3, 101)[:, None, None, None]
    assert linear_regions(model, images) == 4
    assert linear_regions(model, images, batch_size=7) == 4
    assert linear_regions(model, images[images[:, 0, 0, 0] > 1.5]) == 2
    assert linear_regions(nn.Sequential(model, nn.ReLU6()), images * 4) == 7  # ReLU6 adds kinks at 6, 7 and 8


def test_regions_use_the_statistics_of_each_batch():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.ReLU(), nn.Flatten())
    images = torch.tensor([10.0, 10.0, 13.0, 13.0])[:, None, None, None]
    assert linear_regions(model, images) == 2
    assert linear_regions(model, images, batch_size=2) == 1  # every image is the mean of its batch


def test_a_smooth_network_has_no_regions_to_count():
    with pytest.raises(ValueError, match="no piecewise linear activation"):
        linear_regions(nn.Sequential(nn.Conv2d(1, 1, 1), nn.SiLU()), torch.zeros(2, 1, 1, 1))


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    "measure",
    [linear_regions, lambda m, x: condition_number(m, x, "batch"), lambda m, x: condition_number(m, x, "frozen")],
)
def test_leaves_the_model_as_it_was(measure, fails, images):
    model = convolutional()
    model[2].eval()
    if fails:
        model.append(Failing())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            measure(model, images)
    else:
        measure(model, images)
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_bad_input_is_named(images):
    with pytest.raises(ValueError, match="'batch' or 'frozen', not 'eval'"):
        tangent_kernel(convolutional(), images, "eval")
    with pytest.raises(ValueError, match="Flatten has no weights"):
        tangent_kernel(nn.Flatten(), images)


def test_functional_relu_is_not_seen_but_modules_are(images):
    class Functional(nn.Module):
        def forward(self, x):
            return F.relu(x)

    with pytest.raises(ValueError, match="no piecewise linear activation"):
        linear_regions(Functional(), images)
    assert linear_regions(nn.LeakyReLU(), images) == len(images)
