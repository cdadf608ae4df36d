"""What a training step does besides its subnets' work: see benchmarks/step_overhead.py, which counts it."""

import pytest
import torch

from supernet.training.step import TrainStep
from tests.benchmark import benchmark


@pytest.fixture(scope="module")
def overhead():
    with benchmark("step_overhead") as module:
        yield module


@pytest.fixture(scope="module")
def step(overhead):
    return overhead.Step("mobilenet_v3_micro", 32, 2)


def test_a_step_that_logs_nothing_waits_for_nothing(overhead, step, monkeypatch):
    arguments = overhead.Arguments("mobilenet_v3_micro")
    assert overhead.synchronisations(step, arguments) == 0
    run = TrainStep.__call__

    def asking(self, batch, learners):
        outputs = run(self, batch, learners)
        outputs.losses.sum().item()
        return outputs

    monkeypatch.setattr(TrainStep, "__call__", asking)
    assert overhead.synchronisations(step, arguments) == 1


def test_what_a_step_does_beyond_its_plain_models_is_counted(overhead, step):
    nodes = overhead.own_nodes(step, 0)
    assert nodes == len(step.learners(0))  # one for all slices of a subnet
    assert overhead.gradients_that_begin(step, 0) == len(list(step.net.parameters()))
    counted, _ = overhead.count_operators(step, 0)
    slices = sum(len(step.net.sources(learner.arch)) for learner in step.learners(0))
    assert 0 < counted["extra"] < 3 * slices
    assert counted["plain"] > counted["extra"]
    assert torch.is_grad_enabled()
