"""Transforms against values worked by hand, on plain modules, in supernets and under an optimizer that decays."""

import copy
import pickle

import pytest
import torch
from torch import nn

from compress.codebooks import clustered
from compress.transforms import Binary, Bits, Codebook, Mask, Ternary, fold, transformed
from supernet import SearchSpace, Supernet
from supernet.training.loop.average import MovingAverage
from supernet.views import View

WEIGHT = torch.tensor([[0.9, -0.3, 0.1, 0.0], [2.0, 1.0, -4.0, 0.5]])
KEPT = torch.tensor([[True, False, True, True], [False, True, True, False]])
TRANSFORMS = [Mask(KEPT), Bits(8), Bits(3), Bits(4, per_channel=False), Codebook((-1.0, 0.0, 0.5)), Binary(), Ternary()]


def gradient(transform, weight=WEIGHT):
    raw = weight.clone().requires_grad_()
    (transform(raw) * torch.arange(1.0, 1 + weight.numel()).view_as(weight)).sum().backward()
    return raw.grad


def test_a_mask_keeps_and_zeroes_values_and_gradients():
    assert torch.equal(Mask(KEPT)(WEIGHT), WEIGHT * KEPT)
    assert torch.equal(gradient(Mask(KEPT)), torch.arange(1.0, 9).view(2, 4) * KEPT)
    assert Mask(KEPT).density == 5 / 8
    assert torch.equal(Mask(KEPT)(torch.full((2, 4), torch.inf)), torch.where(KEPT, torch.inf, 0))


def test_masks_are_equal_by_what_they_keep():
    assert Mask(KEPT) == Mask(KEPT.clone()) == pickle.loads(pickle.dumps(Mask(KEPT))) == copy.deepcopy(Mask(KEPT))
    assert hash(Mask(KEPT)) == hash(Mask(KEPT.clone()))
    assert Mask(KEPT) != Mask(~KEPT)
    assert Mask(KEPT) != Mask(KEPT.view(4, 2))


def test_a_mask_does_not_follow_the_tensor_that_it_was_made_of():
    kept = KEPT.clone()
    mask = Mask(kept)
    kept.zero_()
    assert torch.equal(mask(WEIGHT), WEIGHT * KEPT)


def test_bits_round_each_channel_to_multiples_of_its_step():
    # steps 0.9 / 3 and 4 / 3
    expected = torch.tensor([[0.9, -0.3, 0.0, 0.0], [8 / 3, 4 / 3, -4.0, 0.0]])
    torch.testing.assert_close(Bits(3)(WEIGHT), expected)
    torch.testing.assert_close(Bits(3).step(WEIGHT), torch.tensor([0.3, 4 / 3]))
    torch.testing.assert_close(Bits(2, per_channel=False)(WEIGHT), torch.tensor([[0.0] * 4, [0.0, 0, -4, 0]]))
    assert torch.equal(gradient(Bits(3)), torch.arange(1.0, 9).view(2, 4))


def test_bits_have_at_most_their_number_of_values_and_half_a_step_of_error():
    weight = torch.randn(5, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    for bits in (2, 4, 8):
        rounded, step = Bits(bits)(weight), Bits(bits).step(weight)
        assert all(len(channel.unique()) <= 2**bits - 1 for channel in rounded)
        assert ((rounded - weight).abs() <= step.view(-1, 1, 1, 1) * 0.5001).all()


def test_a_channel_of_zeros_stays_one():
    zeros = torch.zeros(2, 3)
    for transform in (Bits(8), Bits(4, per_channel=False), Ternary(), Codebook((0.0,)), Binary()):
        assert torch.equal(transform(zeros), zeros), transform


def test_a_codebook_gives_the_nearest_centroid():
    book = Codebook((-1.0, 0.0, 0.5))
    assert torch.equal(book(WEIGHT), torch.tensor([[0.5, 0.0, 0.0, 0.0], [0.5, 0.5, -1.0, 0.5]]))
    assert book.indices(torch.tensor([0.25, 0.26, -0.5])).tolist() == [1, 2, 0]  # ties go to the lower one
    assert torch.equal(gradient(book), torch.arange(1.0, 9).view(2, 4))


def test_binary_weights_are_signs_times_the_mean_of_their_channel():
    signs = torch.tensor([[1.0, -1, 1, 1], [1, 1, -1, 1]])
    torch.testing.assert_close(Binary()(WEIGHT), signs * torch.tensor([[1.3 / 4], [7.5 / 4]]))
    assert torch.equal(Binary("one")(WEIGHT), signs)
    beyond = torch.tensor([[1.0, 2, 3, 4], [0, 6, 0, 8]])  # no gradient where |w| > 1
    assert torch.equal(gradient(Binary()), beyond)
    assert torch.equal(gradient(Binary("one")), beyond)


def test_ternary_weights_have_the_mean_of_those_beyond_the_threshold():
    # thresholds 0.7 * 0.325 = 0.2275 and 0.7 * 1.875 = 1.3125
    torch.testing.assert_close(Ternary()(WEIGHT), torch.tensor([[0.6, -0.6, 0, 0], [3.0, 0, -3.0, 0]]))
    assert torch.equal(gradient(Ternary()), torch.arange(1.0, 9).view(2, 4))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_a_supernet_and_a_plain_module_compute_the_same_with_a_transform(transform):
    def build(arch):
        return nn.Sequential(nn.Linear(4, arch["width"], bias=False), nn.ReLU(), nn.Linear(arch["width"], 3))

    space = SearchSpace({"width": (2, 4)})
    net = Supernet(
        space, build, views=lambda arch: {"0.weight": View(transform=transform)} if arch["width"] == 2 else {}
    )
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    arch = space.smallest
    with torch.no_grad():
        raw = nn.Sequential(nn.Linear(4, 2, bias=False), nn.ReLU(), nn.Linear(2, 3))
        raw.load_state_dict(net.extract(arch).state_dict() | {"0.weight": net.state_dict()["0.weight"][:2]})
    plain = transformed(raw, {"0.weight": transform})
    assert torch.equal(plain(x), net(x, arch))
    assert torch.equal(plain(x), net.extract(arch)(x))
    keys, outputs = {"0.weight", "2.weight", "2.bias"}, plain(x)
    assert fold(plain).state_dict().keys() == keys
    assert torch.equal(plain(x), outputs)
    assert type(plain[0]) is nn.Linear


def test_momentum_decay_and_averages_leave_masked_weights_zero():
    torch.manual_seed(0)
    model = transformed(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), {"0.weight": Mask(KEPT)})
    average = MovingAverage(model, 0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for step in range(30):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        average.update(model, step)
    reloaded = transformed(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), {"0.weight": Mask(KEPT)})
    reloaded.load_state_dict(model.state_dict())
    for trained in (model, average.module, reloaded):
        assert (fold(trained)[0].weight[~KEPT] == 0).all()
        assert (trained[0].weight[KEPT] != 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mask(torch.ones(2)), "give it a boolean tensor, not one of torch.float32"),
        (lambda: Mask(KEPT)(WEIGHT[:, :2]), r"a mask \(2, 4\) does not fit a weight \(2, 2\)"),
        (lambda: Bits(1), "rounded to 2 to 16 bits, not to 1"),
        (lambda: Codebook((1.0, 0.0)), r"ascending centroids, not \(1.0, 0.0\)"),
        (lambda: Codebook(()), "ascending centroids"),
        (lambda: Binary("max"), "'one' or 'mean', not 'max'"),
        (lambda: Ternary(float("nan")), "a multiple of their mean, not nan"),
        (lambda: transformed(nn.Linear(2, 2), {"wieght": Bits(8)}), "'wieght' is no parameter of the Linear"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "put",
    [
        lambda model: transformed(model, {"0.weight": Bits(3)}),
        lambda model: transformed(model, {"2.weight": Bits(3)}),  # by the other name
        lambda model: clustered(model, {"0.weight": 2}),
    ],
)
def test_a_weight_that_layers_share_is_transformed_in_all_of_them_and_stays_one(put):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    apart = copy.deepcopy(model)
    apart[2].weight = nn.Parameter(apart[0].weight.detach().clone())
    put(model)
    assert len([name for name, _ in model.named_parameters() if "weight" in name]) == 1
    x = torch.randn(3, 4)
    by_hand = model[2](torch.relu(model[0](x)))
    assert torch.equal(model[0].weight, model[2].weight)
    assert not torch.equal(model[0].weight, apart[0].weight)
    model(x).sum().backward()
    assert model[0].parametrizations.weight.original.grad is not None
    folded = fold(model)
    assert folded[0].weight is folded[2].weight
    torch.testing.assert_close(folded(x), by_hand)
