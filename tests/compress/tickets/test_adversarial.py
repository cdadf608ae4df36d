"""Adversarial examples by hand, and HYDRA: scores that are learned on them keep what makes a network robust."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.tickets.adversarial import Adversarial, Attack, perturbed
from compress.tickets.masks import magnitude_mask, weights_of
from compress.tickets.supermasks import popup
from compress.transforms import Mask, fold, transformed
from supernet.evaluation import evaluate
from supernet.tasks import Classification
from supernet.training.cohort import train_models
from supernet.training.data.tensors import TensorData
from supernet.training.execution import Execution
from supernet.training.loop.config import LoopConfig


def test_steps_go_along_the_sign_of_the_gradient_as_far_as_epsilon():
    model = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, -1.0, 0.0]]))
    x = torch.tensor([[0.5, 0.5, 0.5]])
    loss = torch.sum
    one = perturbed(model, x, loss, Attack(0.25, 0.1, steps=1))
    torch.testing.assert_close(one, torch.tensor([[0.6, 0.4, 0.5]]))
    assert torch.equal(perturbed(model, x, loss, Attack(0.25, 0.1, steps=9)), torch.tensor([[0.75, 0.25, 0.5]]))
    assert x.tolist() == [[0.5, 0.5, 0.5]]
    assert model.weight.grad is None


def test_an_attack_changes_nothing_of_the_model_and_works_without_gradients():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).train()
    before, x = copy.deepcopy(model.state_dict()), torch.randn(6, 4)
    labels = torch.arange(6) % 3

    def loss(output):
        return F.cross_entropy(output, labels)

    with torch.no_grad():
        moved = perturbed(model, x, loss, Attack(0.3, 0.1, 5))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (moved - x).abs().max() <= 0.3 + 1e-6
    model.eval()
    assert loss(model(moved)) > loss(model(x))


def part(count, seed):
    """Two classes: a strong input that an attack of 0.3 turns round, and twelve that it does not."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    sign = (2.0 * labels - 1)[:, None]
    weak = 0.1 * sign + 0.02 * torch.randn(count, 12, generator=generator)
    strong = 0.8 * sign + 0.5 * torch.randn(count, 1, generator=generator)
    return torch.cat([weak, strong], 1), labels


DATA = TensorData(part(320, 0), part(32, 1), part(200, 2), ("a", "b"))


def test_scores_that_are_learned_on_attacks_keep_what_is_robust(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(13, 16), nn.ReLU(), nn.Linear(16, 2))
    task, attack = Classification(num_classes=2, label_smoothing=0.0), Attack(0.3, 0.1, 4)
    execution = Execution(device="cpu", eval_epochs=0)

    def train(model, task, folder):
        config = LoopConfig(epochs=6, batch_size=32, lr=0.5, scale_lr=False, warmup_epochs=0, weight_decay=0)
        return train_models([model], [None], DATA, config, folder, task=task, execution=execution)[0].eval()

    def robust(model):
        return evaluate(model, Adversarial(task, model, attack), DATA.evaluation_batches(DATA.test, None), None)

    whole = train(model, task, tmp_path / "whole")
    masks = magnitude_mask(weights_of(whole), 0.5, "layer")
    pruned = fold(transformed(copy.deepcopy(whole), {name: Mask(mask) for name, mask in masks.items()}))
    scored = popup(copy.deepcopy(whole), 0.5, scores="magnitude")
    hydra = fold(train(scored, Adversarial(task, scored, attack), tmp_path / "hydra"))
    assert all((weight != 0).float().mean() == 0.5 for weight in weights_of(hydra).values())
    assert robust(hydra)["accuracy"] > robust(pruned)["accuracy"] + 0.1


def test_bad_attacks_are_named():
    with pytest.raises(ValueError, match="at least 1 step"):
        Attack(0.1, 0.1, 0)
