import itertools

import pytest
import torch

from compress.pruning.subnet import elastic_channels, pruned, sizes_within
from supernet.artifacts.runs import open_data
from supernet.artifacts.subnet import Subnet, load_subnet, save_subnet
from supernet.artifacts.subnet_config import SubnetConfig
from supernet.channels.importance import comparable_scores
from supernet.errors import Unattainable
from supernet.families import FAMILIES
from supernet.training.recipes import RECIPES


@pytest.fixture(scope="module")
def subnet():
    family = FAMILIES["mobilenet_v3_micro"](num_classes=10)
    arch = family.space.smallest
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = family.build(arch).eval()
    return Subnet(model, SubnetConfig.of("mobilenet_v3_micro", "{}", arch, open_data(RECIPES["digits"]().data, 0)))


def test_sizes_are_those_of_the_lowest_threshold_in_multiples_of_the_step():
    """Against all thresholds, one after another."""
    scores = {"a": torch.tensor([5.0, 1, 2, 8, 3, 9]), "b": torch.tensor([4.0, 6, 7])}
    for step, most in itertools.product((1, 2, 4), range(1, 10)):
        admissible = []
        for threshold in (-1.0, *range(1, 10)):
            counts = {name: max(1, int((own > threshold).sum())) for name, own in scores.items()}
            sizes = {name: min(len(scores[name]), (count + step - 1) // step * step) for name, count in counts.items()}
            admissible += [sizes] * (sum(sizes.values()) <= most)
        if admissible:
            assert sizes_within(scores, step, lambda sizes, most=most: sum(sizes.values()) <= most) == admissible[0]
        else:
            with pytest.raises(Unattainable, match="no threshold of importance meets few"):
                sizes_within(scores, step, lambda sizes, most=most: sum(sizes.values()) <= most, "few")


def test_a_pruned_subnet_is_saved_like_any(subnet, tmp_path):
    channels = elastic_channels(subnet)
    scores = comparable_scores(subnet.model, channels, "l1")
    sizes = sizes_within(scores, 4, lambda sizes: sum(sizes.values()) < sum(map(len, scores.values())) / 2)
    before = {name: tensor.clone() for name, tensor in subnet.model.state_dict().items()}
    found = pruned(subnet, channels, sizes, scores)
    save_subnet(tmp_path, found, onnx=False)
    loaded = load_subnet(tmp_path)
    images = torch.rand(2, *subnet.config.input_size)
    with torch.no_grad():
        assert torch.equal(loaded.model(images), found.model(images))
    assert loaded.config.facts["macs"] == loaded.config.family().macs(found.config.family().space.largest)
    assert loaded.config.facts["macs"] < subnet.config.facts["macs"]
    assert loaded.model.conv_stem.out_channels == sizes["conv_stem"]
    assert all(torch.equal(before[name], tensor) for name, tensor in subnet.model.state_dict().items())


def test_the_channels_that_matter_stay(subnet):
    channels = elastic_channels(subnet)
    scores = comparable_scores(subnet.model, channels, "l1")
    found = pruned(subnet, channels, {"conv_stem": 2}, scores)
    kept = scores["conv_stem"].argsort(descending=True, stable=True)[:2]
    assert torch.equal(found.model.conv_stem.weight, subnet.model.conv_stem.weight[kept])


def test_activations_that_are_zero_tell_which_channels_go(subnet):
    """A channel whose BatchNorm keeps it far below 0 is all zero behind ReLU."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1)
    ).eval()
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([9.0, -9, 9, 9]))
    images = torch.rand(2, 3, 4, 4)
    channels = [own for own in elastic_channels(subnet._replace(model=model)) if own.name == "0"]
    assert comparable_scores(model, channels, "activations", [(images,)])["0"].tolist() == [1, 0, 1, 1]
