"""Refitting against least squares written out, and on networks that it can restore exactly."""

import copy

import pytest
import torch
from torch import nn

from distill.refitting import refit


def network(widths=(6, 6)) -> nn.Module:
    """Convolutions of every kind, with BatchNorm that has something to say, and a head on each position."""
    torch.manual_seed(0)
    first, second = widths
    net = nn.Sequential(
        nn.Conv2d(3, first, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.Conv2d(first, first, 3, padding=1, groups=first, bias=False),
        nn.BatchNorm2d(first),
        nn.Conv2d(first, second, 1),
        nn.ReLU(),
        nn.Conv2d(second, second, 3, groups=2, bias=False),
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, 1.0)
            module.running_var.uniform_(0.5, 2.0)
    return net.eval()


def everything(net):
    return {n: torch.arange(len(m.weight)) for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


@pytest.fixture
def images():
    return [(torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(batch)),) for batch in range(4)]


def test_a_network_that_is_off_is_brought_back(images):
    teacher = network()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for module in student.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.add_(torch.randn_like(module.weight))
                if module.bias is not None:
                    module.bias.add_(1.0)
        student[1].running_mean.add_(3.0)
        student[1].weight.mul_(0.0)
    fitted = refit(student, teacher, images, everything(student), ridges=[1e-9], positions=100)
    assert [found.name for found in fitted] == ["0", "3", "5", "7"]
    assert all(found.error_after < 1e-6 < found.error_before for found in fitted)
    other = torch.randn(5, 3, 12, 12)
    torch.testing.assert_close(student(other), teacher(other), atol=1e-3, rtol=1e-3)


def test_what_is_left_of_doubled_channels_does_the_work_of_all(images):
    """The wide network's channels come in pairs of one and the same, of which the narrow one has the first."""
    narrow, wide = network((3, 4)), network((6, 4))
    with torch.no_grad():
        for i in (0, 1, 3, 4):
            for name, tensor in wide[i].state_dict().items():
                if tensor.dim():
                    tensor.copy_(narrow[i].state_dict()[name].repeat(2, *[1] * (tensor.dim() - 1)))
        wide[5].weight[:, :3].copy_(narrow[5].weight * 0.25)
        wide[5].weight[:, 3:].copy_(narrow[5].weight * 0.75)
        wide[5].bias.copy_(narrow[5].bias)
        wide[7].weight.copy_(narrow[7].weight)
        narrow[5].weight.copy_(wide[5].weight[:, :3])  # as a supernet's leading channels are
    other = torch.randn(5, 3, 12, 12)
    assert (narrow(other) - wide(other)).abs().max() > 0.1
    refit(narrow, wide, images, everything(narrow), ridges=[1e-9], positions=100)
    torch.testing.assert_close(narrow(other), wide(other), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("ridge", [1e-3, 10.0])
def test_a_layer_is_the_solution_of_its_least_squares(ridge):
    torch.manual_seed(0)
    student, teacher, x = nn.Linear(4, 3), nn.Linear(4, 5), torch.randn(50, 2, 4)
    before, shift = student.weight.detach().double(), student.bias.detach().double()
    channels = torch.tensor([4, 0, 2])
    refit(Holder(student), Holder(teacher), [(x,)], {"layer": channels}, ridges=[ridge])
    rows, target = x.flatten(0, 1).double(), teacher(x).detach().flatten(0, 1)[:, channels].double()
    # the same by lstsq: rows of the penalty below those of the samples, the shift free
    penalty = (ridge * rows.square().mean() * len(rows)).sqrt() * torch.eye(4, dtype=torch.double)
    left = torch.cat([torch.cat([rows, torch.ones(len(rows), 1)], 1), torch.cat([penalty, torch.zeros(4, 1)], 1)])
    right = torch.cat([target, penalty @ before.T])
    solution = torch.linalg.lstsq(left, right).solution
    torch.testing.assert_close(student.weight.double(), solution[:4].T, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(student.bias.double(), solution[4], atol=1e-5, rtol=1e-5)
    assert not torch.equal(student.bias.double(), shift)


class Holder(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


class Noise(nn.Module):
    """A layer whose outputs are that of another and noise."""

    def __init__(self, holder):
        super().__init__()
        self.layer = NoisyLinear(holder.layer)

    def forward(self, x):
        return self.layer(x)


class NoisyLinear(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.inner = layer

    def forward(self, x):
        return self.inner(x) + torch.randn(*x.shape[:-1], 4, generator=torch.Generator().manual_seed(1))


class Twice(Holder):
    def forward(self, x):
        return self.layer(self.layer(x))


def test_what_cannot_be_fitted_is_left_as_it_is(images):
    teacher, student = network(), network()
    nn.init.normal_(student[5].weight)
    before = copy.deepcopy(student.state_dict())
    few = [(images[0][0][:1, :, :5, :5],)]  # 9 positions at most
    assert refit(student, teacher, few, everything(student)) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items() if "weight" in name)
    twice = Twice(nn.Linear(4, 4))
    assert refit(twice, Twice(nn.Linear(4, 4)), [(torch.randn(50, 4),)], {"layer": torch.arange(4)}) == []


def test_the_ridge_is_the_one_that_predicts_images_left_out():
    """Outputs that follow from the inputs ask for a small one, noise for a large one."""
    torch.manual_seed(0)
    x = torch.randn(40, 1, 8)
    layer = Holder(nn.Linear(8, 4))
    channels = {"layer": torch.arange(4)}
    (follows,) = refit(copy.deepcopy(layer), Holder(nn.Linear(8, 4)), [(x,)], channels, ridges=(1e-4, 1e-2, 10.0))
    (noise,) = refit(copy.deepcopy(layer), Noise(layer), [(x,)], channels, ridges=(1e-4, 1e-2, 10.0))
    assert (follows.ridge, noise.ridge) == (1e-4, 10.0)
    assert follows.error_after < 1e-6 < follows.error_before


@pytest.mark.parametrize(
    ("channels", "batches", "message"),
    [
        ({"9": torch.arange(6)}, 1, "no convolution and no linear layer '9'"),
        ({"1": torch.arange(6)}, 1, "no convolution and no linear layer '1'"),
        ({"0": torch.arange(4)}, 1, "0 has 6 outputs, not 4"),
        ({"0": torch.arange(6)}, 0, "at least one batch"),
    ],
)
def test_what_does_not_fit_together_is_refused(images, channels, batches, message):
    with pytest.raises(ValueError, match=message):
        refit(network(), network(), images[:batches], channels)
