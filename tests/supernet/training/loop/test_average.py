import copy
import dataclasses

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn

from supernet import SearchSpace, Supernet
from supernet.training.data import DataConfig, load_data
from supernet.training.execution import Execution
from supernet.training.loop import Loop
from supernet.training.loop.average import MovingAverage
from supernet.training.loop.config import LoopConfig
from supernet.views import View

DECAY, STEPS = 0.75, 6


class TiedEnds(nn.Module):
    """The last layer has the weight of the first, a buffer has two names, and BatchNorm counts."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.last.weight = self.first.weight
        self.register_buffer("scale", torch.ones(4))
        self.register_buffer("factor", self.scale)

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


def walk(net, step):
    """The same change of all tensors of `net` in any step, each once."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in {id(t): t for t in net.state_dict(keep_vars=True).values()}.values():
            change = torch.randn(tensor.shape, generator=generator)
            tensor.add_(change if tensor.is_floating_point() else 1)


def test_a_tied_tensor_is_averaged_once_a_step():
    net = TiedEnds()
    average = MovingAverage(net, DECAY)
    by_hand = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for step in range(STEPS):
        walk(net, step)
        average.update(net, step)
        for name, tensor in net.state_dict().items():
            decay = DECAY if step > 1 else 0.0
            mean = decay * by_hand[name] + (1 - decay) * tensor
            by_hand[name] = mean if tensor.is_floating_point() else tensor.clone()
    found = average.module.state_dict()
    assert found.keys() == by_hand.keys()
    for name, tensor in by_hand.items():
        torch.testing.assert_close(found[name], tensor)
    assert average.module.last.weight is average.module.first.weight
    assert average.module.factor is average.module.scale
    assert not average.module.training


def supernet(views):
    space = SearchSpace({"depth": (1, 2)})

    def build(arch):
        return nn.Sequential(*(nn.Linear(4, 4) for _ in range(arch["depth"])))

    return Supernet(space, build, views=views)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 1)),
        supernet(lambda arch: {}),
        supernet(lambda arch: {"1.weight": View("0.weight"), "1.bias": View("0.bias")} if arch["depth"] == 2 else {}),
    ],
    ids=["plain", "supernet", "sources"],
)
def test_without_tied_names_it_is_timms_bit_for_bit(net):
    average, timms = MovingAverage(net, DECAY), ModelEmaV3(net, DECAY)
    for step in range(STEPS):
        walk(net, step)
        average.update(net, step)
        timms.update(net, step)
    assert average.state_dict().keys() == timms.state_dict().keys()
    for name, tensor in timms.state_dict().items():
        assert torch.equal(average.state_dict()[name], tensor)
    again = MovingAverage(copy.deepcopy(net), DECAY)
    again.load_state_dict(timms.state_dict())  # as from a checkpoint of a former version
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in timms.state_dict().items())


def test_the_loop_averages_a_tied_model_of_timms_as_by_hand(tmp_path):
    """In coat_tiny two attentions of every stage have their positions in common."""
    net = timm.create_model("coat_tiny", serial_depths=(1, 1, 1, 1), parallel_depth=1, num_classes=10, img_size=32)
    names = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    tied = [some for some in names.values() if len(some) > 1]
    assert tied
    config = LoopConfig(epochs=1, batch_size=4, ema_decay=DECAY, warmup_epochs=0)
    whole = load_data(DataConfig())
    data = dataclasses.replace(whole, train=torch.utils.data.Subset(whole.train, range(4 * STEPS)))
    loop = Loop(net, data, config, tmp_path, lambda model: {}, Execution("cpu", eval_epochs=0))
    by_hand = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for step, (images, labels) in loop.batches(32):
        loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        loop.update(step, loss[None].detach(), ["coat"])
        loop.finish(step, {"loss": loss.detach()})
        for name, tensor in net.state_dict().items():
            by_hand[name] = torch.lerp(by_hand[name], tensor, 1 - (DECAY if step > 1 else 0.0))
    assert step == STEPS - 1
    assert all(torch.equal(loop.result.state_dict()[name], by_hand[name]) for some in tied for name in some)
    assert any(not torch.equal(net.state_dict()[name], by_hand[name]) for some in tied for name in some)
