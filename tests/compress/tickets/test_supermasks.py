"""Supermasks by hand, edge-popup's choice and gradients, and masks before any training."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.tickets.masks import magnitude_mask, weights_of
from compress.tickets.saliency import grasp, snip, synflow
from compress.tickets.supermasks import CRITERIA, popup, supermask
from compress.tickets.untrained import SCORES, mask_before_training, shuffled
from compress.transforms import fold
from distill.temporary import batch_statistics
from search.untrained import zero_cost

BEFORE = torch.tensor([1.0, -2.0, 0.5, -0.1, 3.0])
AFTER = torch.tensor([1.5, 1.0, -0.2, -0.9, 2.0])


@pytest.mark.parametrize(
    ("criterion", "kept"),
    [
        ("large_final", [1, 0, 0, 0, 1]),
        ("small_final", [0, 0, 1, 1, 0]),
        ("large_init", [0, 1, 0, 0, 1]),
        ("small_init", [0, 0, 1, 1, 0]),
        ("large_init_large_final", [1, 0, 0, 0, 1]),  # 1, 1, 0.2, 0.1, 2
        ("magnitude_increase", [1, 0, 0, 1, 0]),  # 0.5, -1, -0.3, 0.8, -1
        ("movement", [0, 1, 0, 0, 1]),  # 0.5, 3, 0.7, 0.8, 1
        ("large_final_same_sign", [1, 0, 0, 0, 1]),  # 1.5, 0, 0, 0.9, 2
        ("magnitude_increase_same_sign", [1, 0, 0, 1, 0]),  # 0.5, -, -, 0.8, -1
    ],
)
def test_criteria_by_hand(criterion, kept):
    assert supermask(criterion, {"w": BEFORE}, {"w": AFTER}, 0.4)["w"].int().tolist() == kept


def test_all_criteria_are_tested_and_others_named():
    (marks,) = [mark for mark in test_criteria_by_hand.pytestmark if mark.name == "parametrize"]
    assert {criterion for criterion, _ in marks.args[1]} == set(CRITERIA)
    with pytest.raises(ValueError, match="not 'biggest'"):
        supermask("biggest", {"w": BEFORE}, {"w": AFTER}, 0.4)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)).eval()


IMAGES = torch.randn(12, 2, 6, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(12) % 4


@pytest.mark.parametrize("scores", ["random", "magnitude"])
def test_popup_uses_exactly_a_part_of_frozen_weights(scores):
    model = popup(network(), 0.3, scores=scores)
    before = {name: tensor.clone() for name, tensor in network().state_dict().items()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert [parameter.shape for parameter in trainable] == [(6, 2, 3, 3), (4, 96)]
    optimizer = torch.optim.SGD(trainable, 0.5, momentum=0.9, weight_decay=1e-2)
    first = copy.deepcopy(model)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model(IMAGES), LABELS).backward()
        optimizer.step()
    if scores == "magnitude":
        kept = magnitude_mask(weights_of(network()), 0.7, "layer")
        assert all(torch.equal(fold(first).get_parameter(name) != 0, mask) for name, mask in kept.items())
    trained, first = fold(model).state_dict(), fold(first).state_dict()
    for name in ("0.weight", "4.weight"):
        used = trained[name] != 0
        assert used.sum() == round(0.3 * used.numel())
        assert torch.equal(trained[name][used], before[name][used])
        assert not torch.equal(used, first[name] != 0)
    assert all(torch.equal(trained[name], before[name]) for name in before if name not in ("0.weight", "4.weight"))


def test_the_gradient_of_a_score_is_that_of_the_weight_in_use_times_the_weight():
    model, x = nn.Linear(5, 3), torch.randn(7, 5, generator=torch.Generator().manual_seed(2))
    plain = copy.deepcopy(model)
    popup(model, 0.4)
    scores = model.parametrizations.weight.original
    assert scores.abs().max() <= 1 / math.sqrt(5)
    used = model.weight.detach().clone().requires_grad_()
    F.linear(x, used, plain.bias).square().sum().backward()
    model(x).square().sum().backward()
    torch.testing.assert_close(scores.grad, used.grad * plain.weight * scores.sign())
    assert ((scores.grad != 0) & (used == 0)).any()


@pytest.mark.parametrize("method", sorted(SCORES))
@pytest.mark.parametrize("rounds", [None, 3])
def test_masks_before_training_keep_as_many_and_leave_the_model_alone(method, rounds):
    model = network()
    masks = mask_before_training(method, model, IMAGES, LABELS, 0.1, rounds=rounds)
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.1 * (108 + 384))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), network().state_dict().values()))
    assert not model[1].training


def test_synflow_in_rounds_cuts_no_layer_off_where_one_round_does():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 2))
    batch = torch.randn(16, 100), torch.arange(16) % 2
    assert all(mask.any() for mask in mask_before_training("synflow", model, *batch, 0.0005, rounds=30).values())
    for method in SCORES:
        masks = mask_before_training(method, model, *batch, 0.0005, rounds=1)
        assert not all(mask.any() for mask in masks.values()), method


def test_scores_sum_to_those_of_networks():
    model = network()
    for function, score in ((snip, zero_cost.snip), (synflow, zero_cost.synflow)):
        with batch_statistics(model):
            total = sum(part.sum().item() for part in function(model, IMAGES, LABELS).values())
        assert total == pytest.approx(score(model, IMAGES, LABELS), rel=1e-5)


def test_grasp_is_what_the_flow_loses_without_a_weight():
    model, x, labels = nn.Linear(3, 2).double(), torch.randn(5, 3).double(), torch.arange(5) % 2

    def flow(weight):
        weight = weight.clone().requires_grad_()
        loss = F.cross_entropy(F.linear(x, weight, model.bias) / 200, labels)
        (gradient,) = torch.autograd.grad(loss, weight)
        return gradient.square().sum()

    score, weight, step = grasp(model, x, labels)["weight"], model.weight.detach(), 1e-4
    for index in range(weight.numel()):
        less = weight.clone()
        less.view(-1)[index] *= 1 - step
        lost = (flow(weight) - flow(less)) / step / 2
        assert score.view(-1)[index].item() == pytest.approx(lost.item(), rel=1e-3)


def test_shuffled_masks_keep_as_much_of_each_layer():
    masks = {"a": torch.arange(100).view(10, 10) < 20, "b": torch.arange(50) < 10}
    mixed = shuffled(masks, torch.Generator().manual_seed(0))
    assert {name: int(mask.sum()) for name, mask in mixed.items()} == {"a": 20, "b": 10}
    assert not any(torch.equal(mask, masks[name]) for name, mask in mixed.items())


def test_what_is_no_method_or_density_is_named():
    with pytest.raises(ValueError, match="not 'luck'"):
        mask_before_training("luck", network(), IMAGES, LABELS, 0.1)
    with pytest.raises(ValueError, match=r"above 0 to 1, not 0\.0"):
        popup(network(), 0.0)
