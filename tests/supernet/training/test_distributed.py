import dataclasses

import pytest
import torch

from supernet.artifacts.runs import Job, run_job
from supernet.families import FAMILIES
from supernet.training import distributed
from supernet.training.data import DataConfig
from supernet.training.execution import Execution
from supernet.training.methods.sampling import Learner
from supernet.training.step import TrainConfig, TrainStep

TRAIN = TrainConfig(epochs=1, batch_size=8, random_subnets=1)
EXECUTION = Execution(workers=0, eval_epochs=0, log_steps=1, checkpoint_steps=2)
JOB = Job(data=DataConfig(holdout=0.97), train=TRAIN, execution=EXECUTION)  # 5 steps


def gradients(rank=0, world_size=1):
    """Of a step on every `world_size`-th image of a batch; BatchNorm is in eval mode, where images are independent."""
    family = FAMILIES["mobilenet_v3_micro"]()
    net = family.supernet().double().eval()
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(12, 3, 32, 32, generator=draw, dtype=torch.float64)[rank::world_size]
    labels = torch.randint(10, (12,), generator=draw)[rank::world_size]
    # the last subnet leaves most parameters without a gradient of its own
    learners = [Learner(family.space.largest), Learner(family.space.smallest, teacher=0, label_weight=0.0)]
    TrainStep(net, family.task, TrainConfig(), family.build)((images, labels), learners)
    distributed.average_gradients(net.parameters())
    return {name: parameter.grad for name, parameter in net.named_parameters()}


METHODS = ("sandwich", "worst_up")


def train_here(method, directory):
    job = dataclasses.replace(JOB, train=dataclasses.replace(TRAIN, method=method, macs_step=1.0))
    run = run_job(job, directory / method, resume=True)
    return {name: tensor.detach().numpy() for name, tensor in run.net.named_parameters()}


def all_of_this_rank(directory):
    found = gradients(distributed.rank(), distributed.world_size())
    trained = {method: train_here(method, directory) for method in METHODS}
    return {name: gradient.numpy() for name, gradient in found.items()}, trained


@pytest.fixture(scope="module")
def processes(in_two_processes, tmp_path_factory):
    """What each of two processes has, and where their runs are."""
    directory = tmp_path_factory.mktemp("distributed")
    return in_two_processes(all_of_this_rank, directory), directory


def test_two_processes_have_the_gradients_of_one_with_the_joint_batch(processes):
    expected = gradients()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for found, _ in processes[0]:
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            assert (torch.from_numpy(gradient) - expected[name]).abs().max() < 1e-6 * largest, name


@pytest.mark.parametrize("method", METHODS)
def test_processes_train_the_same_weights_and_one_goes_on_alone(processes, method):
    first, second = (trained[method] for _, trained in processes[0])
    for name, weights in first.items():
        assert (weights == second[name]).all(), name
    run_dir = processes[1] / method
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 5

    newest = max((run_dir / "checkpoints").iterdir())
    newest.unlink()
    (run_dir / "supernet.safetensors").unlink()
    alone = train_here(method, processes[1])
    assert alone.keys() == first.keys()
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 5


def test_a_batch_that_does_not_split_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(ValueError, match="a batch of 8 does not split into 3 equal parts"):
        run_job(JOB, tmp_path)
