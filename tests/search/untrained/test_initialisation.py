import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from search.scores.untrained import NAMES, LabelledImages, score_architecture
from search.untrained.initialisation import built, initialise
from search.untrained.proxies import PROXIES
from search.untrained.te_nas import TeNasConfig
from supernet.families import FAMILIES

ROOT = Path(__file__).parents[3]


def states(make, *seed, mode="fan_in"):
    """The parameters of two networks of `make` from different global seeds, both initialised from `seed`."""
    found = []
    for before in (1, 2):
        torch.manual_seed(before)
        model = make()
        initialise(model, mode, *seed)
        found.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
    return found


class Own(nn.Module):
    """A position that nothing initialises again, scales, and layers of every kind."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(1, 30, 8))
        self.scale = nn.Parameter(torch.full((8,), 1e-4))
        self.gain = nn.Parameter(1 + 0.1 * torch.randn(8))
        self.embedding = nn.Embedding(5, 8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.recurrent = nn.LSTM(8, 4)
        self.norm, self.batch_norm, self.act = nn.LayerNorm(8), nn.BatchNorm1d(8), nn.PReLU()
        self.linear, self.parametrised = nn.Linear(8, 3), weight_norm(nn.Linear(8, 8))


@pytest.mark.parametrize("name", ["test_vit", "test_mambaout", "test_convnext", "test_nfnet", "test_byobnet"])
def test_all_parameters_of_timms_models_follow_from_the_seed(name):
    first, second = states(lambda: timm.create_model(name), 3, 1)
    assert all(torch.equal(tensor, second[own]) for own, tensor in first.items())
    other = states(lambda: timm.create_model(name), 3, 2)[0]
    for own in ("pos_embed", "cls_token"):
        assert own not in first or not torch.equal(first[own], other[own])


def test_a_modules_own_initialisation_is_drawn():
    first, second = states(Own, 0)
    assert [name for name in first if not torch.equal(first[name], second[name])] == ["gain"]  # around another value
    assert first["position"].std().item() == pytest.approx(0.02, rel=0.15)
    assert first["scale"].tolist() == [pytest.approx(1e-4)] * 8
    assert first["embedding.weight"].std().item() == pytest.approx(1, rel=0.4)  # torch's own
    bound = (6 / (8 + 24)) ** 0.5  # Xavier's, of torch's own attention
    assert 0.9 * bound < first["attention.in_proj_weight"].abs().max() <= bound
    assert first["recurrent.weight_hh_l0"].abs().max() <= 0.5  # 1 / sqrt(4)
    assert first["act.weight"].item() == 0.25
    v, g = (
        first["parametrised.parametrizations.weight.original1"],
        first["parametrised.parametrizations.weight.original0"],
    )
    assert torch.allclose(v.norm(dim=1, keepdim=True), g)
    # what was there before, even of the same seed, makes no difference
    model = Own()
    for _ in range(2):
        initialise(model, "fan_in", 0)
        own = dict(model.named_parameters())
        assert all(torch.equal(own[name], tensor) for name, tensor in first.items() if name != "gain")


def test_names_and_shapes_alone_decide():
    with torch.random.fork_rng():
        short, long = (timm.create_model("test_vit", depth=depth) for depth in (2, 4))
    for model in (short, long):
        initialise(model, "fan_in", 5)
    deep = dict(long.named_parameters())
    assert all(torch.equal(parameter, deep[name]) for name, parameter in short.named_parameters())
    assert short.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    assert (short.norm.weight == 1).all()
    assert short.cls_token.abs().max() < 1e-5  # timm's 1e-6


def test_what_was_drawn_before_and_is_drawn_after_makes_no_difference():
    def draw(arch):
        return nn.Linear(arch, 2)

    torch.manual_seed(1)
    first = built(draw, 3, 7)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(built(draw, 3, 7).weight, first.weight)
    assert not torch.equal(built(draw, 3, 8).weight, first.weight)


FEW = TeNasConfig(repeats=1, ntk_images=3, region_images=20, region_batch=10)
VIT = {"name": "test_vit", "input_size": 32}
OPTIONS = {"from_timm": VIT, "timm": VIT}


def all_scores(name):
    """All scores of the smallest architecture of a family, on 32 pixels where that is possible."""
    family = FAMILIES[name](num_classes=4, **OPTIONS.get(name, {}))
    draw = torch.Generator().manual_seed(0)
    size = family.resolution(family.space.smallest)
    batch = LabelledImages(torch.randn(4, 3, size, size, generator=draw), torch.tensor([0, 1, 2, 3]), 4)
    proxies = PROXIES[name](4, 3) if name in PROXIES else None
    # ViTs have no ReLU, and regions need proxies
    names = [n for n in NAMES if not (n == "naswot" and name in OPTIONS) and (n != "regions" or proxies)]
    return score_architecture(family, names, family.space.smallest, batch, 3, proxies, FEW)


@pytest.mark.parametrize("name", ["from_timm", "mobilenet_v3_micro", "nasbench_macro"])
def test_scores_are_the_same_whatever_was_drawn_before(name):
    scores = []
    for before in (1, 2):
        torch.manual_seed(before)
        scores.append(all_scores(name))
    assert scores[0] == scores[1]


def test_scores_are_the_same_in_another_process():
    code = (
        "import torch; torch.set_num_threads(1); torch.rand(3);"
        "from tests.search.untrained.test_initialisation import all_scores; print(repr(all_scores('timm')))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env=environment
    )
    assert result.stdout.strip() == repr(all_scores("timm"))


def test_a_network_is_left_in_its_mode_and_on_its_device():
    model = Own().eval()
    kept = copy.deepcopy(dict(model.named_buffers()))
    initialise(model, "fan_out", 1)
    assert not model.training
    assert all(torch.equal(buffer, kept[name]) for name, buffer in model.named_buffers())
