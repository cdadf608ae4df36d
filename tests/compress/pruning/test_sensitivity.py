import torch
from torch import nn

from compress.pruning.sensitivity import plot_sensitivity, sensitivity


def test_each_layer_alone_is_pruned(tmp_path):
    """Where the score is the number of channels that are left, it says itself what was taken away."""
    layers = nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(4, 2)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calls = []

    def left(network):
        calls.append(network(torch.randn(1, 3, 4, 4)).shape)
        return float(network[0].out_channels * network[2].out_channels)

    rows = sensitivity(model, torch.empty(1, 3, 4, 4), left, (0.0, 0.5, 0.9))
    assert [(row.layer, row.fraction, row.kept, row.score) for row in rows] == [
        *(("0", 0.0, 8, 32.0), ("0", 0.5, 4, 16.0), ("0", 0.9, 1, 4.0)),
        *(("2", 0.0, 4, 32.0), ("2", 0.5, 2, 16.0), ("2", 0.9, 1, 8.0)),
    ]
    assert len(calls) == 5  # the whole network once
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    plot_sensitivity(tmp_path / "sensitivity.svg", rows)
    assert "not trained again" in (tmp_path / "sensitivity.svg").read_text()


def test_the_least_important_channels_go():
    model = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.Conv2d(4, 1, 1, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 4, 2, 3]).reshape(4, 1, 1, 1))
    rows = sensitivity(model, torch.empty(1, 1, 2, 2), lambda m: m[0].weight.sum().item(), (0.25, 0.75))
    assert [row.score for row in rows] == [9.0, 4.0]
