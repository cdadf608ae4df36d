"""BatchNorm folded into convolutions against BatchNorm by itself, in double precision."""

import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn import functional as F

from search.prefix import trie
from search.prefix.folding import folded, pairs
from search.prefix.pieces import cut
from supernet.families import FAMILIES


def images(resolution):
    draw = torch.Generator().manual_seed(resolution)
    calibration, evaluation = torch.randn(2, 6, 3, resolution, resolution, generator=draw).double()
    return trie.Batches([calibration], list(evaluation.split(4)))


@pytest.fixture
def batch_norms(monkeypatch):
    """Of each call of F.batch_norm the number of images."""
    calls, batch_norm = [], F.batch_norm

    def counted(x, *arguments, **options):
        calls.append(len(x))
        return batch_norm(x, *arguments, **options)

    monkeypatch.setattr(F, "batch_norm", counted)
    return calls


@pytest.mark.parametrize(
    ("name", "resolution"), [("mobilenet_v3_micro", None), ("nasbench_macro", 32), ("nasbench201", 32)]
)
def test_outputs_are_the_same_up_to_rounding(name, resolution, batch_norms):
    """BatchNorm of the stem, which is a piece of its own, and behind sums is left as it is."""
    family = FAMILIES[name](num_classes=10)
    net = family.supernet().double()
    archs = [family.space.sample(np.random.default_rng(seed)) for seed in range(2)]

    def run(folds):
        resolutions = family.resolution if resolution is None else lambda arch: resolution
        found = dict(trie.outputs(net, archs, images, resolutions, trie.Remembered(0, folds)))
        return torch.stack([found[index] for index in range(len(archs))])

    plain = run(False)
    alone = batch_norms.count(2)  # images are in the second batch that judges
    batch_norms.clear()
    torch.testing.assert_close(run(True), plain, rtol=1e-9, atol=1e-9)
    assert 0 < batch_norms.count(2) < alone


class Block(nn.Module):
    """Layers of which some may be folded, told by what they are named."""

    def __init__(self):
        super().__init__()
        self.yes_1, self.yes_1_norm = nn.Conv2d(4, 4, 3, padding=1), BatchNormAct2d(4)
        self.yes_2, self.yes_2_norm = (
            nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
            nn.BatchNorm2d(4, affine=False),
        )
        self.used_elsewhere, self.norm_a = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.called_twice, self.norm_b, self.norm_c = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.weight_read, self.norm_d = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.without_statistics, self.norm_e = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x):
        x = self.yes_2_norm(self.yes_2(self.yes_1_norm(self.yes_1(x))))
        y = self.used_elsewhere(x)
        x = self.norm_a(y) + y
        x = self.norm_b(self.called_twice(x)) + self.norm_c(self.called_twice(x))
        x = self.norm_d(self.weight_read(x)) * self.weight_read.weight.sum()
        return self.norm_e(self.without_statistics(x))


def block():
    torch.manual_seed(0)
    model = nn.Sequential(Block()).double().eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            if norm.affine:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
    return model


def test_what_may_be_one_convolution_is_found():
    (piece,) = cut(block())
    names = {module: name for name, module in piece.layers[0].named_modules()}
    places = list(piece.modules())
    found = [tuple(names[places[place]] for place in pair) for pair in pairs(piece)]
    assert found == [("yes_1", "yes_1_norm"), ("yes_2", "yes_2_norm")]
    assert pairs(*cut(block())) == pairs(piece)  # which another piece of the same key has in the same places


class DependsOnData(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.convolution(x)) if x.mean() > 0 else x


def test_what_cannot_be_traced_and_what_has_no_batch_norm_is_left_alone():
    for model in (DependsOnData(), nn.Conv2d(4, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())):
        assert all(pairs(piece) == [] for piece in cut(model.eval()))


@torch.no_grad()
def test_afterwards_all_is_as_it_was():
    model = block()
    (piece,) = cut(model)
    before, x = model.state_dict(keep_vars=True), torch.randn(3, 4, 5, 5).double()
    plain = model(x)

    def fails_in_between():
        with folded([(piece, pairs(piece))]):
            torch.testing.assert_close(model(x), plain, rtol=1e-10, atol=1e-10)
            assert model[0].yes_2.bias is not None
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails_in_between()
    assert all(tensor is before[name] for name, tensor in model.state_dict(keep_vars=True).items())
    assert torch.equal(model(x), plain)
    assert all("forward" not in vars(module) for module in model.modules())


class Normalised(nn.Module):
    def __init__(self, convolution):
        super().__init__()
        self.convolution, self.norm = convolution, nn.BatchNorm2d(4)
        self.norm.running_mean.normal_()

    def forward(self, x):
        return self.norm(self.convolution(x))


@torch.no_grad()
def test_a_convolution_of_several_pieces_is_not_folded():
    convolution = nn.Conv2d(4, 4, 1)
    model = nn.Sequential(Normalised(convolution), Normalised(convolution), Normalised(nn.Conv2d(4, 4, 1))).double()
    pieces, x = cut(model.eval()), torch.randn(2, 4, 3, 3).double()
    plain, weight = model(x), convolution.weight
    assert [len(pairs(piece)) for piece in pieces] == [1, 1, 1]
    with folded((piece, pairs(piece)) for piece in pieces):
        assert convolution.weight is weight
        assert "forward" in vars(model[2].norm)
        torch.testing.assert_close(nn.Sequential(*pieces)(x), plain, rtol=1e-10, atol=1e-10)
