"""A range test: what it suggests of known curves, what it trains by, and where it ends."""

import numpy as np
import pytest
import torch
from torch import nn

from supernet.training.cohort import train_models
from supernet.training.data import DataConfig, load_data
from supernet.training.execution import Execution
from supernet.training.learning_rate import HIGHEST, LOWEST, RangeTest, range_test
from supernet.training.loop import LoopConfig
from supernet.training.loop.optimizer import make_optimizer, set_lr

LRS = np.geomspace(LOWEST, HIGHEST, 121)


def curve(fastest, noise=0.0):
    """A loss that falls by 2 around the rate `fastest`, and rises where the rate is 30 times that."""
    decades = np.log10(LRS / fastest)
    fall = 2.3 - 2 / (1 + np.exp(-4 * decades))
    return fall + np.exp(5 * (decades - 1.5)) + noise * np.random.default_rng(0).standard_normal(len(LRS))


@pytest.mark.parametrize("fastest", [1e-3, 0.05])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_the_suggestion_is_where_the_loss_falls_fastest(fastest, noise):
    found = RangeTest(LRS, curve(fastest, noise))
    assert abs(np.log10(found.suggestion / fastest)) < (0.06 if noise == 0 else 0.25)  # decades; a step is 0.05


@pytest.mark.parametrize("losses", [np.full(121, 2.3), 2.3 + 0.1 * np.random.default_rng(0).standard_normal(121)])
def test_a_loss_that_does_not_fall_suggests_nothing(losses):
    assert RangeTest(LRS, losses).suggestion is None


def test_smoothing_is_the_weighted_mean_of_neighbours():
    losses = np.arange(40.0) ** 2
    smoothed = RangeTest(LRS[:40], losses).smoothed
    assert smoothed[10] == pytest.approx((losses[9] + 2 * losses[10] + losses[11]) / 4)
    assert smoothed[0] == pytest.approx((2 * losses[0] + losses[1]) / 3)


def test_the_schedule_grows_exponentially_between_the_scaled_rates():
    config = LoopConfig(lr=10, min_lr=0.01, sched="range", max_steps=4, batch_size=128)
    optimizer, scheduler = make_optimizer(nn.Linear(1, 1), config, 7)
    rates = []
    for step in range(4):
        set_lr(optimizer, scheduler, config, step, 7)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.005, 0.05, 0.5, 5])
    with pytest.raises(ValueError, match="min_lr above 0, not from 0"):
        LoopConfig(sched="range")


def test_a_training_is_tested_until_its_loss_blows_up():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 10))
    data, folders = load_data(DataConfig()), []

    def train(config, execution, directory, on_step):
        folders.append(directory)
        train_models([model], [8], data, config, directory, execution=execution, on_step=on_step)

    config = LoopConfig(epochs=1, batch_size=16, patience=1, ema_decay=0.9, label_smoothing=0.0)
    found = range_test(train, config, Execution("cpu", workers=0, step="eager"), 60)
    assert found.lrs == pytest.approx(np.geomspace(LOWEST, HIGHEST, 60)[: len(found.lrs)])
    assert len(found.lrs) == 60 or found.losses[-1] > 4 * found.losses.min()
    assert 0.01 < found.suggestion < 5
    assert not folders[0].exists()


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match="at least 20 steps, not 3"):
        range_test(lambda *arguments: None, LoopConfig(), Execution(), 3)
