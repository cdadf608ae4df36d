"""Tickets: how many weights are left, what they go back to, that masks never revive, and resuming."""

import itertools
import json
from functools import partial

import pytest
import torch
from torch import nn

from compress.tickets.iterative import Round, TicketConfig, find_ticket, note_round, rewound
from compress.tickets.masks import density_of
from compress.transforms import fold
from supernet.tasks import Classification
from supernet.training.cohort import train_models
from supernet.training.data.tensors import TensorData
from supernet.training.execution import Execution
from supernet.training.loop import loop
from supernet.training.loop.config import LoopConfig

STEPS = 6  # of an epoch
CONFIG = LoopConfig(
    epochs=3, batch_size=10, lr=0.5, momentum=0.9, weight_decay=5e-2, decay_all=True, ema_decay=0.5, warmup_epochs=0
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 3))


def part(count, seed):
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :3].argmax(1)


DATA = TensorData(part(10 * STEPS, 0), part(10, 1), part(30, 2), ("a", "b", "c"))


def train(model, folder, on_step, config=CONFIG, every=10**6):
    execution = Execution(device="cpu", eval_epochs=0, checkpoint_steps=every)
    task = Classification(num_classes=3)
    return train_models(
        [model], [None], DATA, config, folder, task=task, execution=execution, resume=True, on_step=on_step
    )[0]


def found_in(folder, ticket, **settings):
    rounds = []
    settings = {"train": train, "training": CONFIG} | settings
    find_ticket(network(), ticket, steps_per_epoch=STEPS, directory=folder, on_round=rounds.append, **settings)
    return rounds


def test_exactly_what_the_rounds_leave_is_left_and_goes_back_to_the_beginning(tmp_path):
    rounds = found_in(tmp_path, TicketConfig(rounds=3, fraction=0.3, output_fraction=0.1))
    first, state = network(), network().state_dict()
    assert [found.number for found in rounds] == [0, 1, 2, 3]
    for number, masks, start, trained in rounds:
        counts = {name: int(mask.sum()) for name, mask in masks.items()}
        assert counts == {"0.weight": round(0.7**number * 160), "3.weight": round(0.9**number * 60)}
        assert start.keys() == state.keys()
        assert all(torch.equal(start[name], tensor) for name, tensor in state.items())
        assert trained.state_dict().keys() == state.keys()
        for name, mask in masks.items():
            assert not trained.get_parameter(name)[~mask].any()
            assert (trained.get_parameter(name)[mask] != first.get_parameter(name)[mask]).all()
    for before, after in itertools.pairwise(rounds):
        for name, mask in after.masks.items():
            pruned = before.masks[name] & ~mask
            assert not (mask & ~before.masks[name]).any()
            weights = before.trained.get_parameter(name).abs()
            assert weights[pruned].max() <= weights[mask].min()


def test_one_threshold_for_all_layers_leaves_as_much_of_all(tmp_path):
    rounds = found_in(tmp_path, TicketConfig(rounds=2, fraction=0.5, scope="global"))
    assert [found.density for found in rounds] == [1, 0.5, 0.25]
    assert density_of({"": rounds[2].masks["0.weight"]}) != 0.25


def test_a_ticket_goes_back_to_a_later_step_bit_for_bit_and_on_from_there(tmp_path, monkeypatch):
    seen = {}

    def watched(model, folder, on_step):
        def note(result):
            on_step(result)
            seen.setdefault(folder.name, []).append((result.step, result.lr))
            if folder.name == "round-0" and result.step == 4:
                seen["state"] = {name: tensor.clone() for name, tensor in model.state_dict().items()}

        return train(model, folder, note)

    ticket = TicketConfig(rounds=1, fraction=0.5, rewind_epochs=4 / STEPS)
    _, found = found_in(tmp_path, ticket, train=watched)
    assert all(torch.equal(found.start[name], tensor) for name, tensor in seen["state"].items())
    assert not torch.equal(found.start["0.weight"], network()[0].weight)
    assert found.start["1.num_batches_tracked"] == 4
    assert seen["round-1"] == seen["round-0"][4:]  # the same steps of the same schedule
    ticket = rewound(network(), found.start, found.masks)
    state = fold(ticket).state_dict()
    for name, mask in found.masks.items():
        assert torch.equal(state[name], torch.where(mask, found.start[name], 0))


def test_pruned_weights_stay_0_under_momentum_decay_and_averaging():
    model = network()
    masks = {"0.weight": torch.rand(20, 8) < 0.3, "3.weight": torch.rand(3, 20) < 0.3}
    ticket = rewound(model, model.state_dict(), masks)
    optimizer = torch.optim.SGD(ticket.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    average = torch.optim.swa_utils.AveragedModel(ticket, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    x, labels = DATA.train
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(ticket(x), labels).backward()
        optimizer.step()
        average.update_parameters(ticket)
    for name, mask in masks.items():
        layer = int(name[0])
        for weight in (ticket[layer].weight, average.module[layer].weight):
            assert not weight[~mask].any()
            assert (weight[mask] != 0).all()


@pytest.mark.parametrize(("rewind", "killed_at"), [(0, 22), (5, 3), (5, 5), (5, 30)])
def test_a_killed_search_goes_on_to_the_same_ticket(tmp_path, monkeypatch, rewind, killed_at):
    ticket = TicketConfig(rounds=2, fraction=0.4, rewind_epochs=rewind / STEPS)
    settings = {"train": partial(train, every=1)}
    whole = found_in(tmp_path / "whole", ticket, **settings)
    save, saved = loop.save_checkpoint, []

    def save_and_be_killed(*arguments):
        path = save(*arguments)
        saved.append(path)
        if len(saved) == killed_at:
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", save_and_be_killed)
        with pytest.raises(KeyboardInterrupt):
            found_in(tmp_path / "killed", ticket, **settings)
    resumed = found_in(tmp_path / "killed", ticket, resume=True, **settings)
    for one, other in zip(whole, resumed, strict=True):
        assert all(torch.equal(mask, other.masks[name]) for name, mask in one.masks.items())
        state, again = one.trained.state_dict(), other.trained.state_dict()
        assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())


def test_what_is_not_gone_on_with_is_set_aside(tmp_path):
    ticket = TicketConfig(rounds=1)
    found_in(tmp_path, ticket)
    found_in(tmp_path, ticket)
    assert {path.name for path in tmp_path.iterdir()} >= {"round-0", "round-0.1", "round-1", "start.safetensors.1"}


def test_rounds_are_noted_once(tmp_path):
    path, model = tmp_path / "rounds.jsonl", network()
    masks = {"0.weight": torch.ones(20, 8) == 1}
    for number in (0, 1, 2, 1):
        note_round(path, Round(number, masks, {}, model), {"accuracy": number / 2})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"round": n, "density": 1.0, "accuracy": n / 2} for n in (0, 1)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rounds": 0}, "rounds is at least 1"),
        ({"fraction": 1.0}, r"fraction is the part .* not 1\.0"),
        ({"output_fraction": 0.0}, "output_fraction is the part"),
        ({"output_fraction": 0.1, "scope": "global"}, "needs the scope layer"),
        ({"rewind_epochs": -1}, "rewind_epochs 0 or more"),
        ({"rewind_epochs": 3}, "rewind_epochs is below the 3 epochs"),
        ({"exclude": ("1",)}, "no convolution or linear layer"),
    ],
)
def test_bad_settings_are_named(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        found_in(tmp_path, TicketConfig(**settings))
