import dataclasses
import json
import os
from pathlib import Path

import pytest

from supernet.artifacts.runs import Job, job_from_dict, load_run, read_config, run_job
from supernet.training import cluster
from supernet.training.cluster import Cluster, check_room, run_on_cluster
from supernet.training.data import DataConfig
from supernet.training.execution import Execution
from supernet.training.step import TrainConfig

FAMILY = """
import dataclasses
import os
import signal
from pathlib import Path

import torch.distributed as dist
from supernet.families import FAMILIES
from supernet.tasks import Classification

steps = 0


class Deadly(Classification):
    '''Kills the second process in its sixth step; the process that takes its place, in its fourth.'''

    def loss(self, output, batch):
        global steps
        steps += 1
        killed = Path(__file__).with_name("killed")
        times = len(killed.read_text()) if killed.exists() else 0
        if times < 2 and steps == (6, 4)[times] and dist.get_rank() == 1:
            killed.write_text("x" * (times + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(output, batch)


def family(num_classes):
    found = FAMILIES["mobilenet_v3_micro"](num_classes)
    return dataclasses.replace(found, task=Deadly(**vars(found.task)))
"""
FLAGS = (
    "--epochs 2 --batch-size 8 --random-subnets 1 --holdout 0.97 --workers 0 --eval-epochs 0 --log-steps 1 "
    "--checkpoint-steps 2 --cluster local --cluster-workers 2 --max-failures 1"
).split()  # 10 steps
JOB = Job(data=DataConfig(holdout=0.97), train=TrainConfig(epochs=1, batch_size=8), execution=Execution(workers=0))


def train_without_ray(job, directory):
    run = run_job(job, directory)
    return {name: tensor.numpy() for name, tensor in run.net.state_dict().items()}


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")  # Ray leaves files open
def test_a_training_goes_on_when_workers_are_killed(command, in_two_processes, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.getcwd())  # where workers look for what pytest has found
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(FAMILY)
    flags = [*FLAGS, "--space", "mine.py:family", "--output", "runs/mine"]
    failed = command("train", *flags)
    assert failed.returncode == 1
    assert "the training failed more than 1 times, and goes on with --resume" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert Path("killed").read_text() == "xx"  # in the sixth step, and once more behind the checkpoint of the fourth
    assert not Path("runs/mine/config.json").exists()

    again = command("train", *flags)
    assert again.returncode == 2
    assert "holds a training already: add --resume" in again.stderr
    found = command("train", *flags, "--resume")
    assert found.returncode == 0, found.stderr
    assert "--space" in found.stdout
    lines = [json.loads(line) for line in Path("runs/mine/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 11))

    config = read_config(Path("runs/mine"))
    assert config["command"].startswith("supernet train --epochs 2")
    net = load_run("runs/mine", space="mine.py:family").net
    expected, _ = in_two_processes(train_without_ray, job_from_dict(config["job"]), tmp_path / "expected")
    for name, tensor in net.state_dict().items():
        assert (tensor.numpy() == expected[name]).all(), name


def test_what_a_cluster_cannot_do_is_refused_before_it_starts(tmp_path):
    with pytest.raises(ValueError, match="a batch of 8 does not split into 3 equal parts, for 3 processes"):
        run_on_cluster(JOB, tmp_path / "run", Cluster("local", 3))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="run holds a run already: name another output"):
        run_on_cluster(JOB, tmp_path / "run", Cluster("local", 2))
    message = "run holds a run already, of which .*cluster/run has no checkpoint: name another output"
    with pytest.raises(ValueError, match=message):  # one that was trained without a cluster
        run_on_cluster(JOB, tmp_path / "run", Cluster("local", 2), resume=True)
    with pytest.raises(ValueError, match="2 workers need 8 CPUs, but the Ray cluster has 4; say fewer"):
        check_room({"CPU": 4.0}, {"CPU": 8, "GPU": 0}, "2 workers", "say fewer")
    with pytest.raises(ValueError, match="2 workers need 2 GPUs, but the Ray cluster has 1"):
        check_room({"CPU": 4.0, "GPU": 1.0}, {"CPU": 2, "GPU": 2}, "2 workers", "say fewer")


@pytest.mark.parametrize(
    ("device", "gpus", "given"), [("auto", 0, "cpu"), ("cpu", 0, "cpu"), ("auto", 1, "auto"), ("cuda", 1, "auto")]
)
def test_workers_train_where_they_are_given_room(device, gpus, given, tmp_path, monkeypatch):
    class Asked(Exception):
        pass

    def ask(job, workers):
        raise Asked(job.execution.device)

    monkeypatch.setattr(cluster, "_check", ask)
    job = dataclasses.replace(JOB, execution=Execution(device=device))
    with pytest.raises(Asked, match=given):
        run_on_cluster(job, tmp_path / "run", Cluster("local", 2, gpus_per_worker=gpus))


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 1), ("cuda:0", 1), ("cuda", 0)])
def test_a_device_that_workers_are_not_given_is_refused(device, gpus, tmp_path):
    job = dataclasses.replace(JOB, execution=Execution(device=device))
    with pytest.raises(ValueError, match=f"device '{device}': Ray workers run on the part of a GPU .* say auto"):
        run_on_cluster(job, tmp_path / "run", Cluster("local", 2, gpus_per_worker=gpus))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cluster_workers": 0}, "cluster_workers is at least 1, not 0"),
        ({"gpus_per_worker": 2}, "gpus_per_worker is 0 or 1, not 2: say more cluster_workers instead"),
        ({"max_failures": -1}, "max_failures is 0 or more, not -1"),
    ],
)
def test_settings_of_a_cluster_that_contradict_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Cluster("auto", **settings)
