from dataclasses import dataclass

import pytest
import timm
import torch
from torch import nn

from supernet import SearchSpace
from supernet.channels import trace
from supernet.channels.importance import bn_scale, geometric_median, l1_norm, order_channels, taylor_scores
from supernet.families import Family
from supernet.training.data import DataConfig, load_data
from supernet.training.execution import Execution
from supernet.training.methods.sampling import Uniform
from supernet.training.step import TrainConfig
from supernet.training.train import train


def test_l1_norm_sums_absolute_values_of_every_filter():
    assert l1_norm(torch.tensor([[[1.0, -2.0]], [[0.0, 0.5]]])).tolist() == [3, 0.5]


def test_the_filter_at_the_geometric_median_matters_least():
    # on a line at 0, 1 and 5: distances 1 + 5, 1 + 4 and 5 + 4
    assert geometric_median(torch.tensor([[0.0], [1.0], [5.0]])).tolist() == [6, 5, 9]


def test_bn_scale_is_the_absolute_scale():
    assert bn_scale(torch.tensor([0.5, -2.0])).tolist() == [0.5, 2]


def test_taylor_scores_are_the_gradients_of_gates():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.LazyLinear(5))
    batches = [torch.randn(2, 3, 8, 8) for _ in range(2)]
    model(batches[0])
    hidden = next(group for group in trace(model, batches[0]).channels if group.name == "0")
    expected = torch.zeros(4)
    for batch in batches:
        gates = torch.ones(4, requires_grad=True)
        loss = model[2:](model[:2](batch) * gates[:, None, None]).square().sum()
        expected += torch.autograd.grad(loss, gates)[0].abs()
    found = taylor_scores(model, [hidden], batches, lambda model, batch: model(batch).square().sum())
    torch.testing.assert_close(found["0"], expected)


def with_random_vectors(model: torch.nn.Module) -> torch.nn.Module:
    """Scales, biases and statistics that differ from channel to channel."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.dim() == 1:
            low = 0.5 if name.endswith(("weight", "running_var", "gamma")) else -0.5
            tensor.data.uniform_(low, low + 1, generator=generator)
    return model


@pytest.mark.parametrize("importance", ["l1", "geometric_median", "bn_scale"])
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_reordering_changes_the_weights_and_not_the_function(name, importance):
    torch.manual_seed(0)
    size = {"img_size": 32} if "vit" in name else {}
    model = with_random_vectors(timm.create_model(name, num_classes=10, **size)).eval()
    x = torch.randn(2, 3, 32, 32)
    before, expected = {n: t.clone() for n, t in model.state_dict().items()}, model(x)
    assert order_channels(model, trace(model, x).channels, importance) is model
    assert (model(x) - expected).abs().max() < 1e-5 * expected.abs().max().clamp_min(1)
    changed = [n for n, t in model.state_dict().items() if not torch.equal(t, before[n])]
    # a transformer has no BatchNorm to go by
    assert bool(changed) != (importance == "bn_scale" and name in ("convnext_atto", "vit_tiny_patch16_224"))


def test_channels_come_by_falling_importance():
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=10).eval()
    channels = trace(model, torch.empty(1, 3, 32, 32)).channels
    order_channels(model, channels, "l1")
    inner = next(group for group in channels if group.name == "layer2.0.conv1")
    scores = l1_norm(model.layer2[0].conv1.weight)
    assert inner.producers == ("layer2.0.conv1.weight",)
    assert (scores[:-1] >= scores[1:]).all()
    tied = next(group for group in channels if group.name == "layer2.0.conv2")
    assert tied.producers == ("layer2.0.conv2.weight", "layer2.0.downsample.0.weight", "layer2.1.conv2.weight")
    total = sum(l1_norm(w) / l1_norm(w).mean() for w in map(model.get_parameter, tied.producers))
    assert (total[:-1] >= total[1:]).all()


@dataclass(frozen=True)
class Reordering(Uniform):
    """Puts the channels in order before every epoch."""

    def start_epoch(self, net, companions, progress):
        channels = trace(net.extract(self.space.largest), torch.empty(1, 3, 16, 16)).channels
        order_channels(net, channels, "l1", companions)


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_the_order_of_the_channels_makes_no_difference_to_training(opt, tmp_path):
    """The optimizer's state and the moving average go with them, so that the network learns what it did."""

    def build(arch):
        layers = [nn.Conv2d(3, arch["width"], 3, 2, bias=False), nn.BatchNorm2d(arch["width"]), nn.ReLU()]
        layers += [nn.Conv2d(arch["width"], 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))

    space = SearchSpace({"width": (12,)})
    family = Family(space, build, num_classes=10, input_size=16)
    data = load_data(DataConfig(holdout=0.97))  # some 40 images to train on
    config = TrainConfig(epochs=3, batch_size=8, opt=opt, lr=0.3, momentum=0.9, ema_decay=0.7, warmup_epochs=0.0)
    images = data.calibration_images(16, 20, 0)
    found = []
    for method in (Uniform(space), Reordering(space)):
        net = family.supernet()
        before = net.get_parameter("0.weight").clone()
        folder = tmp_path / type(method).__name__
        average = train(family, net, data, config, folder, Execution(eval_epochs=0), method=method)
        with torch.no_grad():
            found.append((net.eval()(images, space.largest), average.eval()(images, space.largest)))
    assert not torch.allclose(net.get_parameter("0.weight"), before, atol=0.01)
    for plain, reordered in zip(*found):
        assert (plain - reordered).abs().max() < 1e-4 * plain.abs().max()
