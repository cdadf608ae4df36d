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
from search.parallel import RayEvaluator
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

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_results_do_not_depend_on_the_number_of_workers():
    here = search(evaluate_here({"sum": sums}))
    for workers in (1, 2):
        with RayEvaluator(SPACE, {"sum": sums}, workers) as evaluate:
            assert search(evaluate).evaluations == here.evaluations
            assert evaluate.retried == []


def test_supernet_accuracies_are_those_of_one_process():
    family = FAMILIES["mobilenet_v3_micro"](num_classes=10)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(80, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (40,), generator=generator)
    score = SupernetAccuracy(family.supernet(), resized(images[:40], images[40:], labels), family.resolution, 20)
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
