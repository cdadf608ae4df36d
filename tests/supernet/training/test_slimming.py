"""Network slimming's penalty: which gradients have it, and how often."""

from unittest.mock import patch

import pytest
import torch
from torch import nn

from distill import Objective
from supernet.training.cohort import train_models
from supernet.training.data import DataConfig, load_data
from supernet.training.execution import Execution
from supernet.training.loop.config import LoopConfig
from supernet.training.slimming import add_slimming

CONFIG = LoopConfig(epochs=1, batch_size=8, warmup_epochs=0.0, opt="momentum", momentum=0.0, weight_decay=0.0)
SILENT = Execution(workers=0, eval_epochs=0)


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    return nn.Sequential(*layers)


def test_scales_alone_have_the_subgradient():
    model = network()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([2.0, -3.0, 0.0, 0.5]))
    model(torch.randn(4, 3, 8, 8)).square().sum().backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    add_slimming([model], 0.1)
    for name, parameter in model.named_parameters():
        expected = before[name] + 0.1 * torch.tensor([1.0, -1, 0, 1]) if name == "1.weight" else before[name]
        torch.testing.assert_close(parameter.grad, expected)


def test_what_is_not_trained_has_no_penalty():
    model = network()
    model[1].weight.requires_grad_(False)
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    add_slimming([model, nn.BatchNorm2d(4, affine=False)], 0.1)
    assert model[1].weight.grad is None


def trained(folder):
    """A step on a network in which scales have no gradient but the penalty's; and the learning rates."""
    model, data, rates = network(), load_data(DataConfig(holdout=0.97), 0), []
    objective = Objective(slimming=0.01)
    with patch.object(nn.BatchNorm2d, "forward", lambda norm, x: x + 0 * norm.weight.sum()):
        train_models(
            [model], [16], data, CONFIG, folder, objective, execution=SILENT, on_step=lambda step: rates.append(step.lr)
        )
    return model[1].weight.tolist(), rates


def test_a_training_takes_it_once_a_step(tmp_path):
    scales, rates = trained(tmp_path)
    assert scales == pytest.approx([1 - 0.01 * sum(rates)] * 4)


@pytest.mark.exhaustive
def test_in_two_processes_it_counts_once(tmp_path, in_two_processes):
    for scales, rates in in_two_processes(trained, tmp_path):
        assert scales == pytest.approx([1 - 0.01 * sum(rates)] * 4)
