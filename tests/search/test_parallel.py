"""The evaluator on two local Ray workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from search.history import History
from search.loop import ask_and_tell, evaluate_here
from search.parallel import RayEvaluator, check_resources, worker_device
from search.problem import Problem
from search.scores.accuracy import SupernetAccuracy, resized
from search.strategies.evolution import Evolution, EvolutionConfig
from supernet import SearchSpace
from supernet.families import FAMILIES

SPACE = SearchSpace({"a": tuple(range(10)), "b": tuple(range(10))})


def sums(archs):
    time.sleep(0.02 * len(archs))
    return [float(arch["a"] + arch["b"]) for arch in archs]


def slow_sums(archs):
    time.sleep(0.5 * len(archs))
    return sums(archs)


def problem():
    return Problem(SPACE, ["sum"], {"a": lambda archs: [arch["a"] for arch in archs]})


def search(evaluate, **options):
    p = problem()
    return ask_and_tell(p, Evolution(p, 0, EvolutionConfig(8)), evaluate, 24, **options)


class KillsItsWorkerOnce:
    """A score that ends its process with SIGKILL the first time it sees an architecture with a = 3."""

    def __init__(self, marker):
        self.marker = marker

    def __call__(self, archs):
        if any(arch["a"] == 3 for arch in archs) and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return sums(archs)


def always_kills(archs):
    if any(arch["a"] == 3 for arch in archs):
        os.kill(os.getpid(), signal.SIGKILL)
    return sums(archs)


def fails_on_threes(archs):
    if any(arch["a"] == 3 for arch in archs):
        raise RuntimeError("three")
    return [float("nan") if arch["b"] == 4 else float(arch["a"]) for arch in archs]


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "0")  # one GPU, whether it is there or not
        ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_results_do_not_depend_on_the_number_of_workers():
    here = search(evaluate_here({"sum": sums}))
    for workers in (1, 2):
        with RayEvaluator(SPACE, {"sum": sums}, workers) as evaluate:
            assert search(evaluate).evaluations == here.evaluations
            assert evaluate.retried == []


def images():
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(80, 3, 32, 32, generator=generator)
    return resized(both[:40], both[40:], torch.randint(10, (40,), generator=generator))


def test_supernet_accuracies_are_those_of_one_process():
    family = FAMILIES["mobilenet_v3_micro"](num_classes=10)
    score = SupernetAccuracy(family.supernet(), images(), family.resolution, 20)
    archs = [family.space.sample(np.random.default_rng(seed)) for seed in range(6)]
    expected = score(archs)
    with RayEvaluator(family.space, {"accuracy": score}, 2) as evaluate:
        outcomes = {outcome.index: outcome for outcome in evaluate(archs)}
    assert [outcomes[index].scores["accuracy"] for index in range(6)] == expected


def test_a_killed_worker_changes_nothing(tmp_path):
    here = search(evaluate_here({"sum": sums}))
    with RayEvaluator(SPACE, {"sum": KillsItsWorkerOnce(tmp_path / "killed")}, 2) as evaluate:
        result = search(evaluate)
        assert result.evaluations == here.evaluations
        assert len(evaluate.retried) == 1
        assert "retried" in evaluate.retried[0]


def test_an_architecture_that_always_kills_its_worker_fails_alone():
    with RayEvaluator(SPACE, {"sum": always_kills}, 2) as evaluate:
        archs = SPACE.decode([[a, 0] for a in range(6)])
        outcomes = {outcome.index: outcome for outcome in evaluate(archs)}
    assert sorted(outcomes) == list(range(6))
    assert {index for index, outcome in outcomes.items() if outcome.error} == {3}
    assert "killed its worker 3 times" in outcomes[3].error


def test_failures_are_recorded_and_do_not_stop_the_search(tmp_path):
    p = Problem(SPACE, ["x"])
    with (
        RayEvaluator(SPACE, {"x": fails_on_threes}, 2) as evaluate,
        History(tmp_path / "history.jsonl", p.describe()) as history,
    ):
        result = ask_and_tell(p, Evolution(p, 0, EvolutionConfig(50)), evaluate, 100, history=history)
    assert len(result.evaluations) == 100  # the whole space
    for evaluation in result.evaluations:
        a, b = evaluation.arch["a"], evaluation.arch["b"]
        expected = "x: RuntimeError: three" if a == 3 else "x is nan" if b == 4 else None
        assert evaluation.error == expected
        assert evaluation.scores == ({} if expected else {"x": float(a)})


class Place:
    """A score that is 1 on a GPU, where there is no memory for the largest, and 0 on a CPU, from which alone it can be
    sent."""

    device = "somewhere"

    def to(self, device):
        self.device = torch.device(device).type
        return self

    def __getstate__(self):
        assert self.device == "cpu"
        return {}

    def __call__(self, archs):
        if self.device == "cuda" and SPACE.largest in archs:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [float(self.device == "cuda")] * len(archs)


def test_scores_run_on_a_workers_part_of_a_gpu():
    with RayEvaluator(SPACE, {"place": Place()}, 1, gpus=0.5) as evaluate:
        assert [outcome.scores for outcome in evaluate([SPACE.smallest])] == [{"place": 1.0}]
        with pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory$"):
            list(evaluate([SPACE.largest]))


def test_scores_are_sent_from_the_cpu_and_run_there_on_workers_without_a_gpu(elsewhere):
    family = FAMILIES["mobilenet_v3_micro"](num_classes=10)
    score = SupernetAccuracy(family.supernet(), images(), family.resolution, 20)
    (expected,) = score([family.space.smallest])
    scores = {"accuracy": score.to(elsewhere), "place": Place()}
    with RayEvaluator(family.space, scores, 1) as evaluate:
        outcomes = [outcome.scores for outcome in evaluate([family.space.smallest])]
    assert outcomes == [{"accuracy": expected, "place": 0.0}]


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


def test_parts_are_of_one_gpu_each():
    check_resources({"CPU": 8, "GPU": 2}, 6, 1, 0.33)
    check_resources({"CPU": 8, "GPU": 1}, 8, 1, 0.125)
    message = "3 workers with 0.6 of a GPU each need 3 GPUs, but the Ray cluster has 2; use fewer workers or smaller"
    with pytest.raises(ValueError, match=message):  # which together are less than two
        check_resources({"CPU": 8, "GPU": 2}, 3, 1, 0.6)


def test_too_few_cpus_are_an_error():
    with pytest.raises(ValueError, match="5 workers need 5 CPUs, but the Ray cluster has 2"):
        RayEvaluator(SPACE, {"sum": sums}, 5)


# what Ray has set in this process is not for another cluster's driver
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
ROOT = Path(__file__).parents[2]
DRIVER = """
import sys
from tests.search.test_parallel import *

with RayEvaluator(SPACE, {"sum": slow_sums}, 2) as evaluate, History(sys.argv[1], problem().describe()) as history:
    search(evaluate, history=history)
"""


def test_a_killed_driver_loses_nothing_that_was_evaluated(tmp_path):
    path = tmp_path / "history.jsonl"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, path], cwd=ROOT, start_new_session=True, env=ENVIRONMENT)
    while not path.exists() or path.read_bytes().count(b"\n") < 10:  # a header and 9 evaluations, of 24
        assert driver.poll() is None
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    again = []

    def evaluate(archs):
        again.extend(archs)
        return evaluate_here({"sum": sums})(archs)

    with History(path, problem().describe(), resume=True) as history:
        kept = set(history.past)
        resumed = search(evaluate, history=history)
    assert len(kept) >= 9
    assert kept.isdisjoint(again)
    assert resumed.evaluations == search(evaluate_here({"sum": sums})).evaluations
