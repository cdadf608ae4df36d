import numpy as np
import pytest
import torch
from torch import nn

from supernet.families import FAMILIES
from supernet.skeleton import build_skeleton


class Model(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.frozen = nn.Parameter(torch.ones(width), requires_grad=False)
        self.register_buffer("statistics", torch.ones(width))
        self.register_buffer("table", torch.arange(width), persistent=False)


def test_what_is_in_the_state_dict_has_no_memory_and_constants_are_real():
    skeleton, model = build_skeleton(Model, 3), Model(3)
    assert all(tensor.is_meta for tensor in skeleton.state_dict().values())
    assert skeleton.table.tolist() == [0, 1, 2]
    assert {n: (t.shape, t.dtype) for n, t in skeleton.state_dict().items()} == {
        n: (t.shape, t.dtype) for n, t in model.state_dict().items()
    }
    assert isinstance(skeleton.linear.weight, nn.Parameter)
    assert skeleton.linear.weight.requires_grad
    assert not skeleton.frozen.requires_grad


def test_tied_parameters_stay_tied():
    def build(width):
        layers = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))
        layers[1].weight = layers[0].weight
        return layers

    skeleton = build_skeleton(build, 3)
    assert skeleton[0].weight is skeleton[1].weight
    assert skeleton[0].bias is not skeleton[1].bias


@pytest.mark.parametrize("name", FAMILIES)
def test_building_a_skeleton_draws_no_random_numbers(name):
    # otherwise what is cached would decide what is drawn next, and a resumed run would differ
    family = FAMILIES[name]()
    state = torch.get_rng_state()
    build_skeleton(family.build, family.space.sample(np.random.default_rng(0)))
    assert torch.equal(torch.get_rng_state(), state)
