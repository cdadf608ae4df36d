import logging
import math
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct
from torch import nn

from search.untrained.zero_cost import (
    SCORES,
    WORST,
    fisher,
    grad_norm,
    grasp,
    jacob_cov,
    naswot,
    plain,
    snip,
    synflow,
    zen_score,
)
from supernet.families import FAMILIES


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(weight, *rest: nn.Module) -> nn.Sequential:
    """Flattened images times a weight without bias."""
    weight = torch.tensor(weight)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight
    return nn.Sequential(nn.Flatten(), layer, *rest)


def images_of(rows) -> torch.Tensor:
    """One row of pixels an image."""
    return torch.tensor(rows)[:, None, None]


def convolutional(dtype=torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 6, 3, bias=False),
            bn=nn.BatchNorm2d(6),
            relu=nn.ReLU(),
            conv2=nn.Conv2d(6, 4, 3, groups=2),
            relu2=nn.ReLU(inplace=True),
            dropout=nn.Dropout(0.5),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(4, 3),
        )
    ).to(dtype)


@pytest.fixture
def batch():
    return torch.randn(5, 3, 8, 8, generator=generator()), torch.tensor([0, 1, 2, 1, 0])


@pytest.fixture
def double_batch(batch):
    return batch[0].double(), batch[1]


def weights_of(model: nn.Module) -> list[nn.Parameter]:
    return [model.conv.weight, model.conv2.weight, model.classifier.weight]


def loss_of(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss with batch statistics and without dropout, independently of the scores."""
    model.train()
    model.dropout.eval()
    return F.cross_entropy(model(images), labels)


def test_gradient_scores_by_hand():
    # equal logits: p = (1/2, 1/2), so that g = (-1/2, 1/2) times x = 2 for the label 0
    model, images, labels = linear([[3.0], [3.0]]), images_of([[2.0]]), torch.tensor([0])
    assert grad_norm(model, images, labels) == pytest.approx(math.sqrt(2))
    assert snip(model, images, labels) == pytest.approx(6)
    assert plain(model, images, labels) == pytest.approx(0, abs=1e-6)
    # a = (6, 6), da = (-1/2, 1/2): (a da)^2 / 2 = 9 / 2 for either channel, of one weight each
    assert fisher(model, images, labels) == pytest.approx(9)


def test_gradient_scores_are_what_autograd_gives(batch):
    model = convolutional()
    gradients = torch.autograd.grad(loss_of(model, *batch), weights_of(model))
    pairs = list(zip(weights_of(model), gradients))
    assert grad_norm(model, *batch) == pytest.approx(sum(g.norm().item() for _, g in pairs), rel=1e-5)
    assert snip(model, *batch) == pytest.approx(sum((w * g).abs().sum().item() for w, g in pairs), rel=1e-5)
    assert plain(model, *batch) == pytest.approx(sum((w * g).sum().item() for w, g in pairs), rel=1e-4, abs=1e-6)


def test_grasp_is_minus_weights_times_hessian_times_gradient(double_batch):
    model = convolutional(torch.float64)
    weights = weights_of(model)

    def gradients():
        return torch.autograd.grad(loss_of(model, *double_batch), weights)

    direction, step = gradients(), 1e-5

    def shifted(sign: int):
        with torch.no_grad():
            for weight, d in zip(weights, direction):
                weight += sign * step * d
        result = gradients()
        with torch.no_grad():
            for weight, d in zip(weights, direction):
                weight -= sign * step * d
        return result

    products = [(up - down) / (2 * step) for up, down in zip(shifted(1), shifted(-1))]
    expected = -sum((w * product).sum().item() for w, product in zip(weights, products))
    assert grasp(model, *double_batch) == pytest.approx(expected, rel=1e-5)


def test_fisher_weighs_the_information_of_a_channel_by_its_weights(double_batch):
    model = convolutional(torch.float64)
    outputs = {}
    layers = [model.conv, model.conv2, model.classifier]
    hooks = [
        layer.register_forward_hook(lambda layer, args, out: outputs.setdefault(layer, out).clone()) for layer in layers
    ]
    loss = loss_of(model, *double_batch)
    for hook in hooks:
        hook.remove()
    expected = 0
    for layer, gradient in zip(layers, torch.autograd.grad(loss, [outputs[layer] for layer in layers])):
        for channel in range(gradient.shape[1]):
            products = (outputs[layer] * gradient)[:, channel].reshape(5, -1).sum(dim=1)
            expected += (products**2).mean().item() / 2 * layer.weight[channel].numel()
    assert fisher(model, *double_batch) == pytest.approx(expected)


def test_synflow_of_every_layer_is_the_sum_over_paths(batch):
    # weights (|1| + |-2|) * |3| + ... : the output for ones with magnitudes, once for each of two layers
    model = nn.Sequential(*linear([[1.0, -2.0], [0.5, 0.0]]), nn.ReLU(), *linear([[3.0, -4.0]])[1:])
    assert synflow(model, torch.zeros(7, 1, 1, 2)) == pytest.approx(2 * (3 * 3 + 0.5 * 4))


def test_synflow_passes_normalisation_by_and_ignores_data(batch):
    model = convolutional()
    model.bn.weight.data = torch.tensor([5.0, -3.0, 0.0, 1.0, 1.0, 1.0])
    bare = nn.Sequential(*(module for name, module in model.named_children() if name != "bn"))
    assert synflow(model, *batch) == pytest.approx(synflow(bare, *batch))
    assert synflow(model, *batch) == synflow(model, 100 * batch[0])


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_synflow_passes_the_normalisation_of_timms_fused_layers_by_and_their_bounds(activation):
    fused = nn.Sequential(*(ConvNormAct(3, 3, 1, act_layer=activation) for _ in range(2)))
    plain = nn.Sequential(*(module for layer in fused for module in (layer.conv, nn.ReLU())))
    for layer in fused:
        nn.init.constant_(layer.conv.weight, 4.0)
    modules = dict(fused.named_modules())
    images = torch.zeros(1, 3, 2, 2)
    assert synflow(fused, images) == synflow(plain, images) == pytest.approx(2 * 3 * 4 * 12 * 12)
    assert dict(fused.named_modules()) == modules


def test_zen_score_counts_the_normalisation_of_timms_fused_layers():
    pool = nn.AdaptiveAvgPool2d(1)
    layers = [ConvNormAct(3, 3, 3) for _ in range(2)]
    fused = nn.Sequential(*layers, pool)
    plain = nn.Sequential(*(m for layer in layers for m in (layer.conv, nn.BatchNorm2d(3), nn.ReLU())), pool)
    images = torch.zeros(4, 3, 5, 5)
    assert zen_score(fused, images) == pytest.approx(zen_score(plain, images))


def test_synflow_does_not_overflow_where_float32_does():
    model = nn.Sequential(*(nn.Conv2d(1, 1, 1, bias=False) for _ in range(50)))
    for layer in model:
        nn.init.constant_(layer.weight, 10.0)
    assert synflow(model, torch.zeros(1, 1, 1, 1)) == pytest.approx(50 * 1e50)


def test_jacob_cov_of_equal_and_of_opposite_gradients():
    k = 1e-5
    # a linear network answers to all images alike: the correlations are all 1, with eigenvalues 3, 0, 0
    score = jacob_cov(linear([[1.0, 2.0, -1.0]]), images_of([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0], [2.0, 2.0, 1.0]]))
    assert score == pytest.approx(-(math.log(3 + k) + 1 / (3 + k)) - 2 * (math.log(k) + 1 / k), rel=1e-6)
    # x -> |x1| + |x2| by ReLUs: gradients (1, -1) and (-1, 1), correlation -1, eigenvalues 2 and 0
    both_signs = linear([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    model = nn.Sequential(*both_signs, nn.ReLU(), *linear([[1.0, 1.0, 1.0, 1.0]])[1:])
    score = jacob_cov(model, images_of([[1.0, -1.0], [-1.0, 1.0]]))
    assert score == pytest.approx(-(math.log(2 + k) + 1 / (2 + k)) - (math.log(k) + 1 / k), rel=1e-6)


def test_naswot_counts_agreeing_units():
    # patterns 110, 101, 001: agreements 3 on the diagonal, 1, 0 and 2 off it; det = 27 - 3 (1 + 0 + 4) = 12
    model = linear([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], nn.ReLU())
    images = images_of([[1.0, 1.0, -1.0], [1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]])
    assert naswot(model, images) == pytest.approx(math.log(12))


def test_naswot_needs_a_piecewise_linear_activation(batch):
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(72, 3))
    with pytest.raises(ValueError, match="Sequential has no piecewise linear activation"):
        naswot(model, *batch)


def test_zen_score_of_one_convolution():
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.zeros(4, 1, 5, 5)
    score = zen_score(model, images, generator=generator(3))
    draws = generator(3)
    weight = torch.randn(1, 1, 1, 1, generator=draws).double()
    before, change = (weight * torch.randn(images.shape, generator=draws).double() for _ in range(2))
    after = before + 0.01 * change

    def normalised(features):
        return (features - features.mean()) / (features.var(correction=0) + 1e-5).sqrt()

    distance = (normalised(before) - normalised(after)).flatten(1).norm(dim=1).mean()
    expected = distance.log() + before.var(correction=0).log() / 2
    assert score == pytest.approx(expected.item(), rel=1e-3)


def test_zen_score_draws_from_its_generator(batch):
    model = convolutional()
    assert zen_score(model, *batch) == zen_score(model, *batch)
    assert zen_score(model, *batch, generator=generator(1)) != zen_score(model, *batch, generator=generator(2))
    repeats = zen_score(model, *batch, generator=generator(1), repeats=2)
    again = generator(1)
    singles = [zen_score(model, *batch, generator=again) for _ in range(2)]
    assert repeats == pytest.approx(sum(singles) / 2)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("family", ["nasbench201", "nasbench_macro", "mobilenet_v3_micro"])
def test_scores_every_space_the_same_each_time(name, family):
    options = {"channels": 4, "cells": 1} if family == "nasbench201" else {}
    family = FAMILIES[family](**options)
    torch.manual_seed(0)
    model = family.build(family.space.largest)
    images = torch.randn(4, 3, 32, 32, generator=generator())
    labels = torch.tensor([0, 1, 2, 3])
    score = SCORES[name](model, images, labels)
    assert math.isfinite(score)
    assert score > WORST
    assert SCORES[name](model, images, labels) == score


def state_of(model: nn.Module):
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return tensors, [
        (
            module.training,
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            len(module._backward_hooks),
            module.__dict__.get("forward"),
        )
        for module in model.modules()
    ]


def assert_untouched(model: nn.Module, before) -> None:
    tensors, modules = before
    torch.testing.assert_close(dict(model.state_dict()), tensors, rtol=0, atol=0)
    assert state_of(model)[1] == modules
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", SCORES)
def test_leaves_the_model_as_it_was(name, batch):
    model = convolutional()
    model.relu.eval()
    model.conv.register_forward_hook(lambda *args: None)
    before = state_of(model)
    SCORES[name](model, *batch)
    assert_untouched(model, before)


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("name", SCORES)
def test_leaves_the_model_as_it_was_when_it_fails(name, batch):
    model = convolutional()
    model.pool = Failing()
    before = state_of(model)
    with pytest.raises(RuntimeError, match="out of memory"):
        SCORES[name](model, *batch)
    assert_untouched(model, before)


@pytest.mark.parametrize("name", sorted(SCORES.keys() - {"synflow", "zen_score"}))
def test_an_overflowing_network_gets_the_worst_score_and_a_reason(name, batch, caplog):
    model = convolutional()
    model.conv2.weight.data.fill_(math.inf)
    with caplog.at_level(logging.WARNING):
        score = SCORES[name](model, *batch)
    if name == "naswot":  # sees the signs before the overflow only
        assert math.isfinite(score)
    else:
        assert score == WORST
        assert f"{name} is" in caplog.text


@pytest.mark.parametrize("name", ["jacob_cov", "naswot", "zen_score"])
def test_a_dead_network_gets_the_worst_score(name, batch, caplog):
    class Dead(nn.Sequential):
        def forward(self, x):
            return super().forward(0 * x)

    assert SCORES[name](Dead(convolutional()), *batch) == WORST
    assert f"{name} is" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", SCORES)
def test_a_gpu_gives_the_score_of_the_cpu(name, batch):
    model = convolutional()
    expected = SCORES[name](model, *batch)
    images, labels = (tensor.cuda() for tensor in batch)
    assert SCORES[name](model.cuda(), images, labels) == pytest.approx(expected, rel=1e-2)
