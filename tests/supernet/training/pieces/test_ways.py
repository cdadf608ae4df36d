from itertools import count

import pytest
import torch

from supernet.training.execution import Execution
from supernet.training.pieces import Ways, ways_of
from supernet.training.pieces.ways import TIMED_STEPS, TRIED_STEPS


def graphs(*_):
    raise AssertionError


def test_the_first_steps_choose_the_fastest():
    seconds = {None: 0.2, graphs: 0.1}
    time, waits = [0.0], count()
    ways = Ways({"eager": None, "graphs": graphs}, lambda: next(waits), lambda: time[0])
    used = []
    for number in range(2 * TRIED_STEPS + 2 * TIMED_STEPS + 5):
        with ways.step() as stand_in:
            used.append(stand_in)
            time[0] += 100 if number < 2 * TRIED_STEPS and stand_in else seconds[stand_in]  # a slow start is none
    assert used == [None, graphs] * (TRIED_STEPS + TIMED_STEPS) + [graphs] * 5
    assert next(waits) == 4 * TIMED_STEPS  # before and after each, as long as it is open


def test_a_step_that_fails_ends_as_it_would_without():
    ways = Ways({"eager": None, "graphs": graphs})
    with pytest.raises(ZeroDivisionError), ways.step():
        1 / 0  # noqa: B018


def test_a_cpu_runs_subnets_as_they_are():
    cpu = torch.device("cpu")
    for step in ("auto", "eager"):
        with ways_of(Execution(step=step), cpu).step() as stand_in:
            assert stand_in is None
    with pytest.raises(ValueError, match="step graphs needs a GPU, and this training is on cpu: say eager or compile"):
        ways_of(Execution(step="graphs"), cpu)
