"""Gates that are shared, shrunk, folded and taken away."""

import copy

import pytest
import timm
import torch
from torch import nn

from compress.pruning.gates import add_gates, fold_gates, train_gated, without_closed
from supernet.training.data import DataConfig, load_data
from supernet.training.execution import Execution
from supernet.training.loop.config import LoopConfig

SIZE = (1, 3, 16, 16)


def chain():
    torch.manual_seed(0)
    layers = []
    for inputs, outputs in ((3, 8), (8, 16)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).eval()


def test_a_channel_is_weighed_by_its_multiply_accumulates():
    gates = add_gates(chain(), torch.empty(SIZE))
    first, second = (27 * 8 + 72 * 16) / 8, 72 + 10 / 256  # MACs a pixel; the head sees one of 256
    mean = (8 * first + 16 * second) / 24
    assert gates.costs == pytest.approx({"0": first / mean, "3": second / mean})


def test_a_proximal_step_closes_gates():
    gates = add_gates(chain(), torch.empty(SIZE))
    with torch.no_grad():
        gates.values["0"].copy_(torch.tensor([1.0, -1.0, 0.3, -0.2, 0.1, 0.0, 0.5, 0.25]))
    amount = 0.25 / gates.costs["0"]
    gates.shrink(amount)
    expected = torch.tensor([0.75, -0.75, 0.05, 0, 0, 0, 0.25, 0])
    torch.testing.assert_close(gates.values["0"].detach(), expected)
    assert gates.open == {"0": 4, "3": 16}


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv2_035"])
def test_what_is_tied_has_one_gate_and_closed_channels_go_without_a_trace(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean):
                    tensor.add_(0.1 * torch.randn(len(tensor)))
    plain, count = model(images), len(list(model.parameters()))
    gates = add_gates(model, images)
    torch.testing.assert_close(model(images), plain)
    assert len(list(model.parameters())) == count + len(gates.values)  # shared by all BatchNorms of a group
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in gates.values.values():
            value.copy_(torch.randn(len(value), generator=draw) * (torch.rand(len(value), generator=draw) < 0.5))
            value[0] = 1.0
    gated = model(images)
    assert not torch.allclose(gated, plain)
    folded = fold_gates(copy.deepcopy(model))
    assert folded.state_dict().keys() == timm.create_model(name, num_classes=10).state_dict().keys()
    assert torch.equal(folded(images), gated)
    parameters = sum(parameter.numel() for parameter in folded.parameters())
    pruned = without_closed(model, gates).model
    torch.testing.assert_close(pruned(images), gated, rtol=1e-4, atol=1e-4)
    assert sum(parameter.numel() for parameter in pruned.parameters()) < 0.7 * parameters


def test_a_group_whose_gates_have_all_closed_keeps_a_channel():
    model = chain()
    gates = add_gates(model, torch.empty(SIZE))
    gates.shrink(100.0)
    images = torch.randn(SIZE)
    gated = model(images)
    pruned = without_closed(model, gates).model
    assert (pruned[0].out_channels, pruned[3].out_channels) == (1, 1)
    torch.testing.assert_close(pruned(images), gated)


def test_training_follows_the_teacher_and_closes_gates(tmp_path):
    data = load_data(DataConfig(holdout=0.9), 0)
    config = LoopConfig(epochs=2, batch_size=16, warmup_epochs=0.0, lr=0.8, weight_decay=0.0)
    pruned = train_gated(
        chain(), chain(), torch.empty(SIZE), data, config, tmp_path, 3.0, execution=Execution(workers=0, eval_epochs=0)
    ).model
    assert pruned[0].out_channels < 8
    assert not any(hasattr(module, "parametrizations") for module in pruned.modules())
    with pytest.raises(ValueError, match="gates do not close in a moving average"):
        train_gated(chain(), chain(), torch.empty(SIZE), data, LoopConfig(ema_decay=0.9), tmp_path, 1.0)


def test_a_model_without_batch_norm_is_refused():
    with pytest.raises(ValueError, match="Sequential has no channels with BatchNorm behind every layer"):
        add_gates(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)), torch.empty(SIZE))
