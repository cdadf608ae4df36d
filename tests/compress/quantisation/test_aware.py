import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from compress.quantisation import Range, activation_ranges, export_int8
from compress.quantisation.aware import MOMENTUM, QuantisationAware
from compress.transforms import Bits
from supernet.artifacts.export import agreement, onnx_runner


class Network(nn.Module):
    """With a residual branch whose BatchNorm begins with a scale of 0, depthwise convolutions and an activation that no
    layer swallows."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.depthwise, self.norm2 = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16)
        self.pointwise, self.norm3 = nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.last, self.head = nn.Conv2d(16, 32, 3, stride=2), nn.Linear(32, 10)
        nn.init.zeros_(self.norm3.weight)

    def forward(self, images):
        x = F.relu(self.norm(self.stem(images)))
        x = x + self.norm3(self.pointwise(F.relu6(self.norm2(self.depthwise(x)))))
        return self.head(F.hardswish(self.last(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def digits():
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    return images.float().reshape(-1, 1, 8, 8) / 16, labels


def fresh():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network()


@pytest.fixture(scope="module")
def trained(digits):
    images, labels = digits
    network = fresh()
    ranges = activation_ranges(network.eval(), [images[:200]], "extremes")
    aware, steps = QuantisationAware(network, ranges).train(), 120
    optimizer = torch.optim.Adam(aware.parameters(), 0.01)
    draw = torch.Generator().manual_seed(0)
    for step in range(steps):
        aware.begin_step(step, steps)
        if step == 80:
            frozen = {name: tensor.clone() for name, tensor in aware.named_buffers()}
        chosen = torch.randint(1000, (128,), generator=draw)
        optimizer.zero_grad()
        F.cross_entropy(aware(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    return aware.eval(), frozen


def test_the_file_computes_what_was_trained(trained, digits, tmp_path):
    images, labels = digits
    aware, _ = trained
    export_int8(aware.quantised(), tmp_path / "int8.onnx", (1, 8, 8), dynamic_batch=True)
    run = onnx_runner(tmp_path / "int8.onnx")
    assert agreement(aware, run, images).top1 >= 0.995
    assert (run(images[1000:]).argmax(1) == labels[1000:]).float().mean() > 0.9
    assert aware.network.norm3.weight.abs().max() > 0  # it has learnt


def test_ranges_and_statistics_are_frozen_for_the_last_third(trained):
    aware, frozen = trained
    assert {"low", "high", "network.norm.running_mean"} <= frozen.keys()
    for name, tensor in aware.named_buffers():
        assert torch.equal(tensor, frozen[name]), name


def test_ranges_follow_the_batches_before():
    model = nn.Sequential(nn.Linear(2, 1))
    aware = QuantisationAware(model, {"0.input": Range(-1.0, 1.0)}).train()
    batch = torch.tensor([[3.0, 0.5]])
    aware(batch)
    assert aware.high.item() == pytest.approx(1 + MOMENTUM * 2)
    assert aware.low.item() == pytest.approx(-1 + MOMENTUM)  # a range has 0, the least that there was
    before = aware.high.clone()
    aware.eval()(batch)
    assert torch.equal(aware.high, before)


def test_gradients_pass_where_nothing_is_cut_off():
    model = nn.Sequential(nn.Linear(2, 1))
    aware = QuantisationAware(model, {"0.input": Range(-1.0, 1.0)}).eval()
    batch = torch.tensor([[0.3, 5.0]], requires_grad=True)
    aware(batch).sum().backward()
    weight = Bits(8)(model[0].weight).detach()
    assert torch.equal(batch.grad, torch.tensor([[weight[0, 0].item(), 0.0]]))


def test_weights_are_rounded_as_they_are_when_batch_norm_is_folded():
    """For a scale that is negative or 0, too."""
    torch.manual_seed(0)
    weight, scale = torch.randn(4, 3, 3, 3), torch.tensor([0.7, -1.3, 0.0, 2.0]).view(-1, 1, 1, 1)
    torch.testing.assert_close(Bits(8)(weight) * scale, Bits(8)(weight * scale))


def test_layers_that_merge_when_deployed_are_refused():
    class Merging(nn.Sequential):
        def reparameterize(self):
            pass

    with pytest.raises(ValueError, match="the layers of '0' become one when it is deployed"):
        QuantisationAware(nn.Sequential(Merging(nn.Linear(2, 1))), {})
