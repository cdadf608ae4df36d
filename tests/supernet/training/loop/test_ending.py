"""Trainings that end before their epochs do, and what goes on of them."""

import json

import pytest
import torch
from torch import nn

from supernet.training.cohort import train_models
from supernet.training.data import DataConfig, load_data
from supernet.training.execution import Execution
from supernet.training.loop import LoopConfig
from supernet.training.loop.checkpoint import load_checkpoint
from supernet.training.loop.patience import Patience


def trained(directory, resume=False, eval_epochs=1, log_steps=1, minutes=None, **settings):
    """The steps of a training of up to 20, five an epoch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
    config = LoopConfig(epochs=4, batch_size=256, warmup_epochs=0, **settings)
    execution = Execution(
        "cpu", workers=0, eval_epochs=eval_epochs, eval_images=20, log_steps=log_steps, minutes=minutes
    )
    steps = []
    train_models(
        [model],
        [8],
        load_data(DataConfig()),
        config,
        directory,
        execution=execution,
        resume=resume,
        on_step=lambda result: steps.append((result.step, result.steps)),
    )
    return steps


def test_training_ends_after_so_many_steps_with_a_last_evaluation(tmp_path):
    assert trained(tmp_path, max_steps=7)[-1] == (7, 7)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "accuracy" in line] == [5, 7]
    assert load_checkpoint(tmp_path / "checkpoints")["step"] == 7
    rates = [line["lr"] for line in lines if "lr" in line]
    assert rates[-1] > 0.5 * rates[0]  # in the first half of the schedule of all epochs
    assert trained(tmp_path, resume=True, max_steps=7) == []


def test_training_ends_when_it_gets_no_better(tmp_path):
    ended = trained(tmp_path, patience=1, lr=1e-9)
    assert ended[-1] == (10, 10)
    assert trained(tmp_path, resume=True, patience=1, lr=1e-9) == []
    with pytest.raises(ValueError, match="patience counts evaluations"):
        trained(tmp_path / "other", patience=1, eval_epochs=0)


def test_the_best_counts_and_goes_on():
    patience = Patience(2)
    for value in (0.5, 0.4):
        patience.look_at({"accuracy": {"largest": value, "smallest": 0.9}})
    again = Patience(2)
    again.load_state_dict(patience.state_dict())
    assert not again.is_over
    again.look_at({"accuracy": {"largest": 0.5}})
    assert again.is_over
    assert str(again) == "the last 2 evaluations were no better than 0.5"
    again.look_at({"accuracy": {"largest": 0.6}})
    assert not again.is_over
    never = Patience(None)
    never.look_at({"accuracy": 0.0})
    assert not never.is_over


def test_time_that_is_over_ends_with_an_evaluation_and_a_checkpoint(tmp_path):
    assert trained(tmp_path, minutes=1e-9, log_steps=3)[-1] == (3, 3)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "accuracy" in line] == [3]
    assert load_checkpoint(tmp_path / "checkpoints")["step"] == 3
    assert trained(tmp_path, resume=True)[-1] == (20, 20)
