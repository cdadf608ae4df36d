"""Mixtures of a teacher's layers, and the search for their weights."""

import copy
from functools import partial

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from distill.accompanied import companions_of
from distill.aggregation import (
    AggregatedTeacher,
    AggregationConfig,
    Bridge,
    Group,
    average_weights,
    groups_of,
    last_weights,
    search_weights,
)
from distill.objective import Objective, objective_losses


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return x + self.layer(x)


def network(width, blocks, seed=0):
    torch.manual_seed(seed)
    stem, body = nn.Conv2d(3, width, 2, 2), nn.Sequential(*(Residual(width) for _ in range(blocks)))
    head = [nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)]
    return nn.Sequential(stem, body, *head)


@pytest.fixture
def example():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(6, 3, 8, 8, generator=generator), torch.arange(6) % 3
    return (images,), partial(F.cross_entropy, target=labels)


GROUP = Group("1", ("1.0", "1.1", "1.2"))


def hinted(teacher, layers, student, example):
    objective = Objective(hint=1.0, layers=layers)
    inputs, loss = example
    torch.manual_seed(1)
    companions = companions_of(objective, student, inputs, teacher)
    return objective_losses(objective, student, inputs, loss, teacher, companions=companions).total


def test_all_weight_on_the_last_layer_is_the_plain_hint_bit_for_bit(example):
    student, teacher = network(4, 1), network(6, 3, 1).eval()
    aggregated = AggregatedTeacher(teacher, [GROUP], [last_weights(GROUP)]).eval()
    assert torch.equal(aggregated(*example[0]), teacher(*example[0]))
    plain = hinted(teacher, (("1", "1"),), student, example)
    assert torch.equal(hinted(aggregated, aggregated.layers, student, example), plain)
    average = AggregatedTeacher(teacher, [GROUP], [average_weights(GROUP)]).eval()
    assert not torch.equal(hinted(average, average.layers, student, example), plain)


@pytest.mark.parametrize("name", ["resnet26t", "mobilenetv3_small_050"])
def test_groups_are_blocks_of_one_shape(name):
    teacher, student = timm.create_model(name).eval(), timm.create_model("resnet10t").eval()
    groups = groups_of(student, teacher, (torch.randn(1, 3, 64, 64),))
    blocks = [group.teacher for group in groups]
    if name == "resnet26t":
        assert blocks[1:] == [tuple(f"layer{index}.{block}" for block in (0, 1)) for index in (1, 2, 3, 4)]
    else:
        assert ("blocks.2.0", "blocks.2.1", "blocks.2.2") not in blocks  # 1/16 ends with blocks.3, of another width
        assert ("blocks.3.0", "blocks.3.1") in blocks
    for group in groups:
        assert group.student in dict(student.named_modules())


def test_the_gradient_of_the_bridge_is_that_of_finite_differences(example):
    student, teacher = network(4, 1).double(), network(6, 3, 1).double().eval()
    (images,), loss = example
    torch.manual_seed(2)
    bridge = Bridge(GROUP, 4, 6).double()
    features = []
    with torch.no_grad():
        x = teacher[0](images.double())
        for block in teacher[1]:
            features.append(x := block(x))
    config = AggregationConfig(informative=0.7, learnable=0.3)
    double = (images.double(),), loss

    def value(beta):
        bridge.beta.data.copy_(beta)
        return bridge(student, features, double, config)

    beta = torch.tensor([0.3, -0.2, 0.5], dtype=torch.double)
    (gradient,) = torch.autograd.grad(value(beta), bridge.beta)
    for index in range(3):
        step = torch.zeros_like(beta)
        step[index] = 1e-6
        difference = (value(beta + step) - value(beta - step)) / 2e-6
        assert gradient[index].item() == pytest.approx(difference.item(), abs=1e-7)


def test_the_bridge_is_what_it_says_and_leaves_the_student_as_it_was(example):
    student, teacher = network(4, 2).train(), network(6, 3, 1).eval()
    before = copy.deepcopy(student.state_dict())
    (images,), loss = example
    bridge = Bridge(GROUP, 4, 6)
    with torch.no_grad():
        bridge.beta.copy_(torch.tensor([0.0, 1.0, 2.0]))
        x, features = teacher[0](images), []
        for block in teacher[1]:
            features.append(x := block(x))
        mixture = sum(w * f for w, f in zip(torch.tensor([0.0, 1.0, 2.0]).softmax(0), features))
        carried = F.conv2d(mixture, bridge.to_student.weight[:, :, None, None], bridge.to_student.bias)
        guess = bridge.from_student.regressor
        own = F.conv2d(student[1](student[0](images)), guess.weight[:, :, None, None], guess.bias)
        expected = 2 * loss(copy.deepcopy(student).eval()[2:](carried)) + 3 * (own - mixture).square().mean()
    found = bridge(student, features, example, AggregationConfig(informative=2.0, learnable=3.0))
    torch.testing.assert_close(found, expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert student.training
    assert not student[1]._forward_hooks


class Noise(nn.Module):
    """A block whose output is noise of the images' size, and says nothing of them."""

    def forward(self, x):
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(x.shape[0]))


def test_a_layer_that_says_nothing_gets_little_weight():
    teacher = network(6, 3, 1).eval()
    teacher[1][1] = Noise()
    teacher[1][2] = Noise()
    generator = torch.Generator().manual_seed(0)

    def examples():
        for _ in range(60):
            labels = torch.randint(3, (16,), generator=generator)
            images = torch.randn(16, 3, 8, 8, generator=generator) + 2 * labels.view(-1, 1, 1, 1)
            yield (images,), partial(F.cross_entropy, target=labels)

    steps = []
    config = AggregationConfig(weights_lr=0.05)
    weights = search_weights(
        network(4, 1), teacher, GROUP, examples(), examples(), config, lambda step, loss, weights: steps.append(step)
    )
    assert steps == list(range(60))
    assert weights.sum().item() == pytest.approx(1)
    assert weights.argmax() == 0
    with pytest.raises(ValueError, match="no example"):
        search_weights(network(4, 1), teacher, GROUP, [], [])
