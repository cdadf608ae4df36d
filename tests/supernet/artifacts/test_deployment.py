import copy

import onnx
import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import is_parametrized

from predictors import prepare, this_device
from predictors.measuring import runtimes
from supernet.artifacts.deployment import deployed
from supernet.artifacts.export import agreement, export_onnx, export_program, onnx_runner, program_runner
from supernet.costs import count_macs, count_parameters

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def trained(name: str) -> nn.Module:
    """With statistics and scales that a merge would get wrong if it forgot them."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.1)
    return model.eval()


@pytest.mark.parametrize("name", ["repvgg_a0", "fastvit_t8", "repvit_m1"])
def test_branches_for_training_are_merged_and_the_logits_stay(name):
    model = trained(name)
    before = copy.deepcopy(model.state_dict())
    merged = deployed(model)
    assert count_parameters(merged) < count_parameters(model)
    assert count_macs(merged, (3, 64, 64)) <= count_macs(model, (3, 64, 64))
    with torch.no_grad():
        expected = model(IMAGES)
        assert (merged(IMAGES) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_files_hold_the_merged_network(tmp_path):
    model = trained("repvgg_a0").train()
    export_onnx(model, tmp_path / "model.onnx", (3, 64, 64), dynamic_batch=True)
    export_program(model, tmp_path / "model.pt2", (3, 64, 64))
    assert model.training
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in deployed(model).modules())
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    assert sum(node.op_type == "Conv" for node in nodes) == convolutions == 22
    nodes = torch.export.load(tmp_path / "model.pt2").graph.nodes
    assert sum("conv2d" in str(node.target) for node in nodes) == convolutions
    for run in (onnx_runner(tmp_path / "model.onnx"), program_runner(tmp_path / "model.pt2")):
        found = agreement(model, run, IMAGES)
        assert found.top1 == 1
        assert found.difference < 1e-4 * model(IMAGES).abs().max()


def test_the_merged_network_is_measured(monkeypatch):
    measured = []
    monkeypatch.setitem(runtimes.RUNTIMES, "torch", lambda model, device, input_size: measured.append(model))
    model = trained("repvgg_a0").train()
    prepare(model, this_device("torch"), (3, 64, 64))
    assert count_parameters(measured[0]) == count_parameters(deployed(model)) < count_parameters(model)
    assert not measured[0].training
    assert model.training


def test_parametrisations_become_the_weights_that_they_make():
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), parametrizations.spectral_norm(nn.Conv2d(4, 4, 1))
    )
    merged = deployed(model.eval())
    assert not any(map(is_parametrized, merged.modules()))
    assert torch.equal(merged(IMAGES), model(IMAGES))
    assert all(map(is_parametrized, model))
