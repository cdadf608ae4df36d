"""Networks that grow and are pruned: which weights come to life, how many there are in each round."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.tickets.growing import GrowConfig, grow_and_prune, growth, mean_gradients
from compress.tickets.masks import density_of


def test_growth_wakes_the_pruned_weights_with_the_largest_gradients():
    masks = {"a": torch.tensor([True, False, False]), "b": torch.tensor([[False, True]])}
    gradients = {"a": torch.tensor([9.0, -2.0, 1.0]), "b": torch.tensor([[1.5, 7.0]])}
    grown = growth(gradients, masks, 0.8)
    assert {name: mask.tolist() for name, mask in grown.items()} == {"a": [True, True, False], "b": [[True, True]]}
    assert density_of(growth(gradients, masks, 1)) == 1
    with pytest.raises(ValueError, match="do not grow to 1"):
        growth(gradients, masks, 0.2)


def test_gradients_are_the_mean_over_batches_also_of_weights_that_are_0():
    model, generator = nn.Linear(4, 3), torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.weight[0] = 0
    batches = [(torch.randn(6, 4, generator=generator), torch.arange(6) % 3) for _ in range(2)]
    found = mean_gradients(model, batches, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))
    x, labels = (torch.cat(parts) for parts in zip(*batches))
    F.cross_entropy(model(x), labels).backward()
    torch.testing.assert_close(found["weight"], model.weight.grad)
    assert (found["weight"][0] != 0).all()


def test_a_network_grows_then_is_pruned_and_keeps_its_weights(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    seen = []

    def gradients(model):
        return {name: torch.arange(parameter.numel()).view_as(parameter).float() for name, parameter in both(model)}

    def both(model):
        return [(name, model.get_parameter(name)) for name in ("0.weight", "2.weight")]

    def train(model, folder):
        used = {index: model[index].weight.detach().clone() for index in (0, 2)}
        seen.append((folder.name, used))
        with torch.no_grad():
            for index in used:
                model[index].parametrizations.weight.original += 0.5
        return model

    config = GrowConfig(first=0.1, grown=0.4, last=0.2, grow_rounds=2, prune_rounds=1)
    found, masks = grow_and_prune(model, config, gradients, train, tmp_path, torch.Generator().manual_seed(0))
    assert [name for name, _ in seen] == ["grow-0", "grow-1", "grow-2", "prune-1"]
    assert density_of(masks) == 0.2
    counts = [sum(int((weight != 0).sum()) for weight in used.values()) for _, used in seen]
    assert counts[0] == 60 + 30
    assert counts[1:3] == [90, 180]  # those that come to life are 0, until they are trained
    for (name, before), (_, after) in itertools.pairwise(seen):
        if name.startswith("grow"):
            for index, weight in before.items():
                moved = torch.where(weight != 0, weight + 0.5, 0)
                kept = (weight != 0) & (after[index] != 0)
                assert torch.equal(after[index][kept], moved[kept])
    for name, mask in masks.items():
        assert torch.equal(found.get_parameter(name) != 0, mask)


@pytest.mark.parametrize("settings", [{"first": 0.3}, {"last": 0.5}, {"grown": 1.1}, {"first": 0}, {"grow_rounds": 0}])
def test_bad_settings_are_named(settings):
    with pytest.raises(ValueError, match=r"densities are|rounds are at least 1"):
        GrowConfig(**settings)
