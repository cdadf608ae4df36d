"""What each stage leaves: counts, values, rounding, and what is left out."""

import pytest
import torch
from torch import nn

from compress.deep_compression import CompressConfig, CompressJob, deep_compression, round_to_float16
from compress.transforms import Bits, fold, transformed
from distill import Objective
from supernet.training.loop.config import LoopConfig


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))


def never(model, config, folder):
    raise AssertionError("nothing is to be trained")


def test_stages_train_what_they_say_in_their_order(tmp_path):
    stages = []

    def train(model, config, folder):
        weight = model[4].weight
        stages.append((folder.name, config.lr, int((weight != 0).sum()), len(weight.unique())))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01
        return model

    config = CompressConfig(density=0.25, prune_rounds=2, bits=3, centroid_lr=0.5)
    model = deep_compression(network(), config, LoopConfig(lr=0.2), tmp_path, train)
    assert stages == [("prune-1", 0.2, 640, 641), ("prune-2", 0.2, 320, 321), ("centroids", 0.1, 320, 9)]
    assert not model.training
    assert [(layer.weight != 0).float().mean().item() for layer in (model[0], model[4])] == [0.25, 0.25]
    assert [name for name, _ in model.named_parameters() if "parametrizations" in name] == []


def test_without_training_layers_can_be_left_out_and_zeros_stay(tmp_path):
    model = network()
    with torch.no_grad():
        model[0].weight[:4] = 0
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = CompressConfig(density=0.9, bits=2, exclude=("4",), float16=False, post_training=True)
    after = deep_compression(model, config, LoopConfig(), tmp_path, never).state_dict()
    assert not after["0.weight"][:4].any()
    assert len(after["0.weight"].unique()) == 5
    assert all(torch.equal(after[name], before[name]) for name in before if name != "0.weight")


def test_tensors_are_rounded_where_that_saves_bytes_and_keeps_their_digits():
    model = network()
    with torch.no_grad():
        model[1].running_var[0] = 1e6
        model[1].running_mean.mul_(0).add_(1e-6 / 3)
        model[4].weight[0, 0] = 1e-9  # among others that are larger
    fold(transformed(model, {"0.weight": Bits(8)}))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = round_to_float16(model).state_dict()
    kept = {name for name, tensor in after.items() if torch.equal(tensor, before[name])}
    assert kept == {"0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}
    for name in ("0.bias", "4.weight", "4.bias"):
        assert torch.equal(after[name], before[name].half().float())
        assert (after[name] - before[name]).abs().max() <= 2**-11 * before[name].abs().max()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"density": 0.0}, r"density is the part .* not 0\.0"),
        ({"bits": 9}, "bits is from 1 to 8"),
        ({"prune_rounds": 0}, "prune_rounds is at least 1"),
        ({"centroid_lr": 0.0}, "centroid_lr above 0"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        CompressConfig(**settings)


def test_peers_are_refused():
    with pytest.raises(ValueError, match="one at a time"):
        CompressJob(peers=("resnet18",), objective=Objective(mutual=1.0))
