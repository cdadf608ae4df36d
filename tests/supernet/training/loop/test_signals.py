"""A training that is ended by a signal has lost no step, and its process hears of signals as before."""

import os
import signal

import pytest
import torch
from torch import nn

from supernet.training.cohort import train_models
from supernet.training.data import DataConfig, load_data
from supernet.training.execution import Execution
from supernet.training.loop import LoopConfig
from supernet.training.loop.checkpoint import load_checkpoint
from supernet.training.loop.signals import Signals, Stopped

CONFIG = LoopConfig(epochs=2, batch_size=256, warmup_epochs=0)  # 10 steps


def trained(directory, workers=0, on_step=lambda result: None, resume=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 9, 10))
    execution = Execution("cpu", workers=workers, eval_epochs=0, log_steps=1)
    data = load_data(DataConfig(), workers=workers)
    (model,) = train_models([model], [8], data, CONFIG, directory, execution=execution, on_step=on_step, resume=resume)
    return model.state_dict()


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 0), (signal.SIGTERM, 1)])
def test_a_training_that_a_signal_ends_goes_on_to_the_same_weights(tmp_path, number, workers):
    before = signal.getsignal(number)

    def send(result):
        if result.step == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped, match=f"{number.name} has ended the training after step 3 of 10") as error:
        trained(tmp_path / "parts", workers, send)
    assert error.value.number == number
    assert signal.getsignal(number) is before
    assert load_checkpoint(tmp_path / "parts" / "checkpoints")["step"] == 3
    resumed, whole = trained(tmp_path / "parts", resume=True), trained(tmp_path / "whole")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("parts", "whole")]
    assert metrics[0] == metrics[1]


def test_there_is_a_checkpoint_every_epoch(tmp_path):
    kept = []
    trained(tmp_path, on_step=lambda result: result.is_kept and kept.append((result.step, result.epoch)))
    assert kept == [(5, 1.0), (10, 2.0)]


@pytest.fixture
def heard():
    """SIGINT is heard, which a process in the background may have been started to ignore."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def test_a_second_signal_is_not_waited_with(heard):
    with Signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt) as error:
            os.kill(os.getpid(), signal.SIGINT)
    assert not isinstance(error.value, Stopped)
