import copy

import pytest
import torch
from torch import nn

from supernet.training.execution import (
    Execution,
    channels_last,
    differences,
    named_device,
    pick_device,
    tf32,
    worker_device,
)


def test_kernels_lie_as_torch_puts_them_and_those_of_five_dimensions_stay():
    kernels = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, groups=16), nn.Linear(4, 4))
    model = channels_last(nn.Sequential(copy.deepcopy(kernels), nn.Conv3d(2, 4, 3)))
    expected = kernels.to(memory_format=torch.channels_last)
    assert [p.stride() for p in model[0].parameters()] == [p.stride() for p in expected.parameters()]
    assert model[1].weight.is_contiguous()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": -1}, "workers is a number of processes, 0 or more, or None, not -1"),
        ({"log_steps": 0}, "log_steps is at least 1, not 0"),
        ({"keep_checkpoints": 0}, "keep_checkpoints is at least 1, not 0"),
    ],
)
def test_what_cannot_be_executed_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Execution(**change)


def test_a_settings_difference_is_named_but_for_execution_and_place():
    begun = {"space": "a", "data": {"root": "x", "hflip": 0.5}, "train": {"lr": 0.1}, "execution": {"device": "cpu"}}
    now = {"space": "a", "data": {"root": "y", "hflip": 0.1}, "train": {"lr": 0.1}, "execution": {"device": "cuda"}}
    assert differences(begun, now) == "data.hflip=0.5"


def test_a_device_is_one_that_torch_can_compute_on_here(elsewhere):
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    assert pick_device(elsewhere).type == elsewhere
    assert named_device("cuda:3") == torch.device("cuda", 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu", "device is cpu, cuda, cuda:N or auto, not 'tpu'"),
        ("cuda", "device 'cuda': this machine has no GPU that torch can use; say cpu"),
        ("cuda:0", "device 'cuda:0': this machine has no GPU that torch can use; say cpu"),
        ("meta", "device 'meta': torch cannot compute there on this machine; say cpu"),
        ("mps", "device 'mps': torch cannot compute there on this machine; say cpu"),
    ],
)
def test_another_device_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        pick_device(name)


@pytest.mark.parametrize(
    ("device", "gpus", "found"), [("auto", 0, "cpu"), ("auto", 0.3, "cuda"), ("cuda", 1, "cuda"), ("cpu", 0, "cpu")]
)
def test_a_worker_runs_where_it_has_its_part(device, gpus, found):
    assert worker_device(device, gpus) == torch.device(found)


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [
        ("cuda", 0, "device 'cuda': Ray workers run on the part of a GPU that they are given, here none, or else on"),
        ("cuda:1", 0.5, "device 'cuda:1': .* that they are given, here 0.5 of a GPU, .* say auto, and with --gpus-per"),
        ("cpu", 0.5, "device 'cpu': Ray workers run on the part of a GPU"),
        ("tpu", 0, "device is cpu, cuda, cuda:N or auto, not 'tpu'"),
        ("auto", -1, "a worker has a GPU or a part of one, from 0 to 1, not -1"),
    ],
)
def test_a_place_that_a_worker_cannot_have_is_refused(device, gpus, message):
    with pytest.raises(ValueError, match=message):
        worker_device(device, gpus)


def test_tf32_is_allowed_as_before_afterwards():
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for allowed in (True, False):
        with tf32(allowed):
            assert [backend.allow_tf32 for backend in backends] == [allowed, allowed]
    assert [backend.allow_tf32 for backend in backends] == before
