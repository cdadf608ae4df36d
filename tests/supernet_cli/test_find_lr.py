"""`--find-lr`: the table, the picture and the line, of a training that is made up."""

import csv
import math

import pytest

from supernet.training.execution import Execution
from supernet.training.loop import StepResult
from supernet.training.loop.config import LoopConfig
from supernet_cli.find_lr import find_lr


def train(falls, config, execution, directory, on_step):
    """Loss that falls around a rate of 0.1, or does not."""
    for step in range(config.max_steps):
        lr = config.min_lr * (config.lr / config.min_lr) ** (step / (config.max_steps - 1))
        loss = 2.3 - (2 / (1 + (0.1 / lr) ** 2) if falls else 0)
        on_step(StepResult(step + 1, config.max_steps, [loss], config.scaled(lr), False, 0.1, 64))


@pytest.mark.parametrize("falls", [True, False])
def test_a_range_test_says_what_it_found(tmp_path, capsys, falls):
    find_lr(lambda *given: train(falls, *given), LoopConfig(batch_size=64), Execution(), 61, tmp_path)
    with (tmp_path / "lr.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 61
    assert [float(rows[index]["lr"]) for index in (0, 60)] == pytest.approx([1e-5, 10])
    assert "training loss" in (tmp_path / "lr.svg").read_text()  # of the axis
    said = capsys.readouterr().out
    if falls:
        suggested = float(said.partition("falls fastest at --lr ")[2].partition(",")[0])
        assert abs(math.log10(suggested / 0.1)) < 0.15
    else:
        assert "never falls clearly" in said
