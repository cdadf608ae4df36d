import dataclasses
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from distill.accompanied import Beside
from supernet.artifacts.runs import Job, run_job
from supernet.families import FAMILIES
from supernet.families.inverted_residual import Network, Stage, inverted_residual
from supernet.training import distributed
from supernet.training.data import DataConfig, load_data
from supernet.training.execution import Execution
from supernet.training.loop.checkpoint import load_checkpoint
from supernet.training.methods.progressive import Phase
from supernet.training.methods.sampling import Learner, Sandwich, Step, Uniform
from supernet.training.randomness import Stream, generator
from supernet.training.step import TrainConfig, TrainStep
from supernet.training.train import train
from tests.recorded import graphed
from tests.small import SPACE, small

TRAIN = TrainConfig(epochs=1, batch_size=8, random_subnets=1)
EXECUTION = Execution(workers=0, eval_epochs=0, log_steps=1, checkpoint_steps=2)
JOB = Job(space=SPACE, data=DataConfig(holdout=0.97), train=TRAIN, execution=EXECUTION)  # 5 steps


def gradients(rank=0, world_size=1):
    """Of a step on every `world_size`-th image of a batch; BatchNorm is in eval mode, where images are independent."""
    family = small()
    net = family.supernet().double().eval()
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(12, 3, 32, 32, generator=draw, dtype=torch.float64)[rank::world_size]
    labels = torch.randint(10, (12,), generator=draw)[rank::world_size]
    # the last subnet leaves most parameters without a gradient of its own
    learners = [Learner(family.space.largest), Learner(family.space.smallest, teacher=0, label_weight=0.0)]
    average = distributed.GradientAverage(net.parameters()) if world_size > 1 else None
    TrainStep(net, family.task, TrainConfig(), average=average)((images, labels), learners)
    if average:
        average.finish()
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def of_own_images(family, net, learners, average=None, rank=None, stand_in=None):
    """Gives `net` the gradients of a step on this process's images, or on those of another."""
    draw = torch.Generator().manual_seed(distributed.rank() if rank is None else rank)
    batch = torch.randn(8, 3, 32, 32, generator=draw), torch.randint(10, (8,), generator=draw)
    TrainStep(net, family.task, TrainConfig(accumulation=2), average=average, stand_in=stand_in)(batch, learners)


def averages(kernel_transform, graphs):
    """The gradients of a step, averaged in small buckets and all together; what happened in which order; and how many
    buckets there were, how many of them had been sent when the last backward pass was over, and their copies at most.
    """
    stages = (Stage((8,), (1,), (3, 5), (1,)), Stage((16, 32), (1, 3), (3, 5), (3, 4), stride=2, se_ratio=0.25))
    network = Network(stages, (8,), (64,), (64,), (24, 32), kernel_transform=kernel_transform)
    family = inverted_residual(network, num_classes=10)
    middle = family.space.sample(np.random.default_rng(0))
    learners = [Learner(family.space.largest), Learner(middle), Learner(family.space.smallest, 0, label_weight=0.0)]
    learners.append(Learner(middle, label_weight=0.0))  # without a gradient
    events, copies = [], []

    class Recorded(distributed.GradientAverage):
        def arrived(self, parameter):
            events.append("arrived")
            super().arrived(parameter)

        def _send(self):
            events.append("sent")
            super()._send()
            copies.append(len(self._on_their_way))

    nets = [family.supernet(), family.supernet()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "BUCKET_BYTES", 5000)
        average = Recorded(nets[0].parameters(), nets[0].late_parameters())
    pieces = graphed(nets[0]) if graphs else None
    if graphs:  # recorded, since each runs twice
        of_own_images(family, nets[0], learners, stand_in=pieces)
        nets[0].zero_grad()
    of_own_images(family, nets[0], learners, average, stand_in=pieces)
    sent = events.count("sent")
    average.finish()
    of_own_images(family, nets[1], learners)
    held = [parameter for parameter in nets[1].parameters() if parameter.grad is not None]
    joint = distributed.average(torch.cat([parameter.grad.flatten() for parameter in held]))
    for parameter, mean in zip(held, joint.split([parameter.numel() for parameter in held])):
        parameter.grad = mean.view(parameter.shape)
    found = [{n: p.grad.numpy() for n, p in net.named_parameters() if p.grad is not None} for net in nets]
    return found, events, (events.count("sent"), sent, max(copies))


METHODS = ("sandwich", "worst_up")


def train_here(method, directory):
    beside = Beside(auxiliary=0.3, hint=0.2) if method == "worst_up" else Beside()
    job = dataclasses.replace(JOB, train=dataclasses.replace(TRAIN, method=method, macs_step=1.0), beside=beside)
    run = run_job(job, directory / method, resume=True)
    return {name: tensor.detach().numpy() for name, tensor in run.net.named_parameters()}


def joint_gradients():
    """The gradients of a step in which each process has subnets and images of its own: averaged, and of each alone."""
    family = FAMILIES["mobilenet_v3_micro"]()  # deep enough that subnets differ in layers, and both leave some out
    joint = family.supernet()
    parameters, late = list(joint.parameters()), joint.late_parameters()
    average = distributed.GradientAverage(parameters, late, alike=False)
    of_own_images(family, joint, learners_of(family, distributed.rank()), average)
    average.finish()
    nets = [joint]
    for rank in range(2):
        nets.append(family.supernet())
        of_own_images(family, nets[-1], learners_of(family, rank), rank=rank)
    return [{n: p.grad.numpy() for n, p in net.named_parameters() if p.grad is not None} for net in nets]


def learners_of(family, rank):
    draw = generator(0, Stream.SUBNETS, 0, rank)
    return Uniform(family.space).learners(Step(0, 0, 0.0, draw, None, None, family.task, None, 0.1))


class Noted(Sandwich):
    def learners(self, step):
        found = super().learners(step)
        chosen.append([dict(learner.arch) for learner in found])
        return found


chosen = []  # by step, the architectures of its learners


def train_apart(directory):
    """With subnets of this process's own; the weights, and the subnets."""
    chosen.clear()
    family = small()
    config = dataclasses.replace(TRAIN, subnets_per_rank=True, resolution_steps=2)
    net = family.supernet()
    train(family, net, load_data(JOB.data), config, directory / "apart", EXECUTION, method=Noted(family.space, 1))
    return {name: tensor.detach().numpy() for name, tensor in net.named_parameters()}, list(chosen)


def finished_again(directory):
    """A run of which the first process alone has the files, asked for again when it is finished: the weights of the
    supernet, and the steps that were done again."""
    run_job(JOB, directory, resume=True)
    if distributed.rank() == 0:
        shutil.rmtree(directory / "checkpoints")
    assert directory.exists() == (distributed.rank() == 0)
    with pytest.raises(ValueError, match="of 0 holds a run already"):  # where the second process has nothing
        run_job(JOB, directory)
    steps = []
    run = run_job(JOB, directory, resume=True, on_step=steps.append)
    assert not run.net.training
    return {name: tensor.numpy() for name, tensor in run.net.state_dict().items()}, steps


def progressive_buffers(directory):
    """Everything that decides what progressive shrinking goes on from, behind its first phase."""
    phases = (Phase("largest", 1), Phase("kernel_size", 1, 0.4, 0, 1, {"kernel_size": 2}))
    train = dataclasses.replace(TRAIN, method="progressive", epochs=2, ema_decay=0.9)
    execution = dataclasses.replace(EXECUTION, eval_epochs=1, eval_images=100)
    run = run_job(dataclasses.replace(JOB, train=train, execution=execution, phases=phases), directory, resume=True)
    return {name: tensor.detach().numpy() for name, tensor in run.net.state_dict().items()}


def all_of_this_rank(directory):
    found = gradients(distributed.rank(), distributed.world_size())
    trained = {method: train_here(method, directory) for method in METHODS}
    averaged = {case: averages(*case) for case in itertools.product((False, True), repeat=2)}
    apart = train_apart(directory), joint_gradients()
    again = finished_again(directory / f"of {distributed.rank()}")
    buffers = progressive_buffers(directory / "progressive")
    return {name: gradient.numpy() for name, gradient in found.items()}, trained, averaged, apart, buffers, again


@pytest.fixture(scope="module")
def processes(in_two_processes, tmp_path_factory):
    """What each of two processes has, and where their runs are."""
    directory = tmp_path_factory.mktemp("distributed")
    return in_two_processes(all_of_this_rank, directory), directory


def test_two_processes_have_the_gradients_of_one_with_the_joint_batch(processes):
    expected = gradients()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for found, *_ in processes[0]:
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            assert (torch.from_numpy(gradient) - expected[name]).abs().max() < 1e-6 * largest, name


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("kernel_transform", [False, True])
def test_buckets_are_averaged_while_the_last_backward_pass_runs(processes, kernel_transform, graphs):
    found = [averaged[kernel_transform, graphs] for *_, averaged, _, _, _ in processes[0]]
    for (bucketed, together), events, (buckets, sent, copies) in found:
        assert bucketed.keys() == together.keys()
        for name, gradient in bucketed.items():
            assert (gradient == together[name]).all(), name
        assert buckets > 10
        assert copies == distributed.IN_FLIGHT
        assert events[-1] == "sent"
        assert events.count("arrived") > 20
        assert events[: events.index("sent")].count("arrived") <= 5
        assert sent > 10 if kernel_transform else sent == buckets
    for name, gradient in found[0][0][0].items():
        assert (gradient == found[1][0][0][name]).all(), name


def test_with_subnets_of_its_own_in_each_process_gradients_are_the_mean_of_both(processes):
    names = {name for name, _ in FAMILIES["mobilenet_v3_micro"]().supernet().named_parameters()}
    for *_, (_, (joint, first, second)), _, _ in processes[0]:
        assert joint.keys() == first.keys() | second.keys()
        assert all((joint[name] == (first[name] + second[name]) / 2).all() for name in first.keys() & second.keys())
        for one, other in ((first, second), (second, first)):
            assert all((joint[name] == one[name] / 2).all() for name in one.keys() - other.keys())
        assert first.keys() != second.keys()  # there are weights that one subnet alone has
        assert joint.keys() < names  # and weights that neither has


def test_processes_with_subnets_of_their_own_train_the_same_weights(processes):
    (first, own), (second, others) = (apart[0] for *_, apart, _, _ in processes[0])
    assert all((first[name] == second[name]).all() for name in first)
    space = small().space
    assert len(own) == len(others) == 5
    for (largest, random, smallest), theirs in zip(own, others):
        assert largest == theirs[0] == dict(space.largest)
        assert smallest == theirs[2] == dict(space.smallest)
        assert random != theirs[1]
        assert random["resolution"] == theirs[1]["resolution"]  # which no process draws by itself


@pytest.mark.parametrize("method", ["cream", "best_up", "worst_up"])
def test_methods_that_compare_subnets_have_the_same_ones_in_all_processes(method):
    with pytest.raises(ValueError, match=f"subnets_per_rank goes with the methods sandwich, .*; {method} compares"):
        TrainConfig(method=method, subnets_per_rank=True)


@pytest.mark.parametrize("method", METHODS)
def test_processes_train_the_same_weights_and_one_goes_on_alone(processes, method):
    first, second = (trained[method] for _, trained, *_ in processes[0])
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


TWENTY_STEPS = ("sandwich", "best_up", "worst_up", "spos", "fairnas", "cream", "progressive")


def twenty_steps(amp, directory):
    """By method, everything that 20 steps leave: weights, statistics and their running average."""
    found = {}
    phases = (Phase("largest", 2), Phase("kernel_size", 2, 0.4, 0, 1, {"kernel_size": 2}))
    for method in TWENTY_STEPS:
        train = dataclasses.replace(TRAIN, method=method, epochs=4, ema_decay=0.9, macs_step=1.0)
        train = dataclasses.replace(train, batch_size=16, board_epoch=1, matching_steps=2)
        job = dataclasses.replace(
            JOB, data=DataConfig(holdout=0.94), train=train, phases=phases if method == "progressive" else ()
        )
        job = dataclasses.replace(job, execution=dataclasses.replace(EXECUTION, amp=amp))
        steps = []
        run = run_job(job, directory / method, on_step=steps.append)
        assert len(steps) == 20
        found[method] = {name: tensor.numpy() for name, tensor in run.net.state_dict().items()}
    return found


@pytest.mark.exhaustive
@pytest.mark.parametrize("amp", ["none", "fp16"])
def test_after_twenty_steps_of_every_method_both_processes_have_the_same_state(amp, in_two_processes, tmp_path):
    first, second = in_two_processes(twenty_steps, amp, tmp_path)
    initial = small().supernet().state_dict()
    for method in TWENTY_STEPS:
        assert any((first[method][name] != tensor.numpy()).any() for name, tensor in initial.items())
        for name, tensor in first[method].items():
            assert (tensor == second[method][name]).all(), (method, name)


def test_a_finished_run_is_not_trained_again_where_the_first_process_alone_has_its_files(processes):
    saved = load_file(processes[1] / "of 0" / "supernet.safetensors")
    for *_, (weights, steps) in processes[0]:
        assert not steps
        assert weights.keys() == saved.keys()
        assert all((weights[name] == tensor.numpy()).all() for name, tensor in saved.items())


def test_a_batch_that_does_not_split_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "from_first", lambda make: make())
    with pytest.raises(ValueError, match="a batch of 8 does not split into 3 equal parts"):
        run_job(JOB, tmp_path)


def shared_values():
    """What processes tell each other."""
    own = distributed.rank()
    tensors = [torch.full((2,), own), torch.full((), own + 1.5)]
    distributed.share(tensors)
    asked = []

    def ask():
        asked.append(own)
        return {"rank": own}

    def refuse():
        raise ValueError("no such file")

    with pytest.raises(ValueError, match="no such file"):
        distributed.from_first(refuse)
    return {
        "shared": [tensor.tolist() for tensor in tensors],
        "first": distributed.from_first(ask),
        "asked": asked,
        "spread": distributed.spread(lambda item: (item, own), "abcde"),
    }


def test_processes_take_what_the_first_has_and_share_out_work(in_two_processes):
    expected = {
        "shared": [[0, 0], 1.5],
        "first": {"rank": 0},
        "spread": [("a", 0), ("b", 1), ("c", 0), ("d", 1), ("e", 0)],
    }
    for rank, found in enumerate(in_two_processes(shared_values)):
        assert found == expected | {"asked": [0] if rank == 0 else []}
    alone = shared_values()
    assert alone["spread"] == [(item, 0) for item in "abcde"]
    assert alone["first"] == {"rank": 0}


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (RuntimeError("[/torch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer"), True),
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), True),
        (torch.distributed.DistNetworkError("Broken pipe"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (RuntimeError("No backend type associated with device type cpu"), False),
        (RuntimeError("[enforce fail at /gloo/gloo/transport/tcp/pair.cc:460] 80 vs 64"), False),  # other tensors
    ],
)
def test_an_error_of_this_process_is_not_taken_for_a_lost_one(error, is_lost, monkeypatch):
    def fail(tensor):
        raise error

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", fail)
    with pytest.raises(RuntimeError) as raised:
        distributed.average(torch.ones(1))
    assert isinstance(raised.value, distributed.LostProcess) == is_lost
    assert is_lost or raised.value is error


def test_all_processes_have_the_statistics_and_the_teacher_that_were_saved(processes):
    (first, second), run_dir = [buffers for *_, buffers, _ in processes[0]], processes[1] / "progressive"
    for name, tensor in first.items():
        assert (tensor == second[name]).all(), name
    saved = load_file(run_dir / "supernet.safetensors")
    for name, tensor in first.items():
        assert (tensor == saved[name].numpy()).all(), name
    lines = [json.loads(line) for line in (run_dir / "1-largest" / "metrics.jsonl").read_text().splitlines()]
    assert set(lines[-1]["accuracy"]) == {"largest", "smallest", "random_0", "random_1"}


@pytest.mark.parametrize(
    ("device", "has_gpus", "backend", "gpus"),
    [("cpu", True, "gloo", []), ("auto", True, "nccl", [1]), ("cuda", True, "nccl", [1]), ("auto", False, "gloo", [])],
)
def test_processes_exchange_what_lies_where_they_train_and_leave_each_other(
    device, has_gpus, backend, gpus, monkeypatch
):
    calls, chosen = [], []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpus)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", calls.append)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: calls.append("left"))

    def interrupted():
        with distributed.joined(device):
            assert calls == [backend]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert calls == [backend, "left"]
    assert chosen == gpus


@pytest.mark.slow
def test_a_killed_process_ends_the_others_in_a_line(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "supernet_cli", "train", "--output", str(tmp_path / "run"), "--epochs", "30"]
    command += ["--space", SPACE, "--log-steps", "1", "--device", "cpu", "--eval-epochs", "0", "--batch-size", "16"]
    environment = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment |= {"LOCAL_RANK": "0", "OMP_NUM_THREADS": "1", "COLUMNS": "500"}
    with ExitStack() as stack:
        logs = [stack.enter_context((tmp_path / f"{rank}.log").open("w+")) for rank in range(2)]
        processes = [
            subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stdout=log, stderr=log)
            for rank, log in enumerate(logs)
        ]
        for process in processes:
            stack.callback(process.wait)
            stack.callback(process.kill)
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text()):
            assert all(process.poll() is None for process in processes), (tmp_path / "0.log").read_text()
            time.sleep(0.1)
        processes[1].kill()
        processes[0].wait(timeout=600)  # seconds on an idle machine
    output = (tmp_path / "0.log").read_text()
    assert processes[0].returncode == 1
    (line,) = [line for line in output.splitlines() if line.startswith("error")]
    assert "another process of this training has ended" in line
    assert "--resume" in line
    assert "Traceback" not in output


def torchrun(directory, *flags):
    """A training of the digits in two processes, begun by torchrun; 17 steps."""
    words = ["train", "--output", directory, "--epochs", "1", "--batch-size", "64", "--device", "cpu"]
    words += ["--eval-epochs", "0", "--log-steps", "1", "--calibration-images", "64", *flags]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    return subprocess.Popen(
        [*launch, "supernet_cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_processes_that_are_told_to_end_leave_a_checkpoint_and_go_on_to_the_same_weights(tmp_path, number):
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    process = torchrun(parts)
    metrics = parts / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or metrics.read_text().count("\n") < 3):
        time.sleep(0.05)
    process.send_signal(number)  # which torchrun passes on to both
    said = process.communicate(timeout=300)[0]
    assert process.returncode != 0
    assert f"{number.name} has ended the training after step" in said
    done = metrics.read_text().count("\n")
    assert done < 17
    assert load_checkpoint(parts / "checkpoints")["step"] == done
    for again in (torchrun(parts, "--resume"), torchrun(whole)):
        said = again.communicate(timeout=300)[0]
        assert again.returncode == 0, said
    weights = [load_file(folder / "supernet.safetensors") for folder in (parts, whole)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert metrics.read_text() == (whole / "metrics.jsonl").read_text()
