"""The evaluator on two local Ray workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from search.evaluator import evaluate_here
from search.history import History
from search.loop import ask_and_tell
from search.parallel import RayEvaluator, check_resources, room
from search.problem import Problem
from search.scores.judges import RunBatches
from search.strategies.evolution import Evolution, EvolutionConfig
from supernet import SearchSpace
from supernet.training.data import DataConfig, load_data

SPACE = SearchSpace({"a": tuple(range(10)), "b": tuple(range(10))})


def sums(archs):
    return [float(arch["a"] + arch["b"]) for arch in archs]


def problem():
    return Problem(SPACE, ["sum"], {"a": lambda archs: [arch["a"] for arch in archs]})


def search(evaluate, **options):
    p = problem()
    return ask_and_tell(p, Evolution(p, 0, EvolutionConfig(8)), evaluate, 24, **options)


class SumsOrDies:
    """Sums. As often as there are files in `folder`, it ends its process with SIGKILL instead when a is 3."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, archs):
        deaths = list(self.folder.iterdir())
        if deaths and any(arch["a"] == 3 for arch in archs):
            deaths[0].unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return sums(archs)


def fails_on_threes(archs):
    if any(arch["a"] == 3 for arch in archs):
        raise RuntimeError("three")
    return [float("nan") if arch["b"] == 4 else float(arch["a"]) for arch in archs]


@pytest.fixture(scope="module", autouse=True)
def address():
    """Of a local Ray, with room for two workers beside `two_workers`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "0")  # one GPU, whether it is there or not
        started = ray.init(num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield started.address_info["address"]
    ray.shutdown()


@pytest.fixture(scope="module")
def here():
    return search(evaluate_here({"sum": sums})).evaluations


@pytest.fixture(scope="module")
def deaths(tmp_path_factory):
    """The folder of `SumsOrDies`."""
    return tmp_path_factory.mktemp("deaths")


@pytest.fixture(scope="module")
def two_workers(deaths):
    with RayEvaluator(SPACE, {"sum": fails_on_threes}, 2) as evaluate:
        yield evaluate.by({"sum": SumsOrDies(deaths)})


@pytest.fixture
def retried(two_workers):
    """What the two workers note in this test."""
    two_workers.retried.clear()
    return two_workers.retried


def test_results_do_not_depend_on_the_number_of_workers(two_workers, retried, here):
    assert search(two_workers).evaluations == here
    assert retried == []


def test_a_killed_worker_changes_nothing(two_workers, retried, deaths, here):
    (deaths / "only").touch()
    assert search(two_workers).evaluations == here
    assert len(retried) == 1
    assert "retried" in retried[0]


def wait_for(worker):
    """Raises what a call of the worker does when it is dead."""
    while True:
        ray.get(worker.ready.remote())


@pytest.mark.exhaustive  # others replace workers that die
def test_an_idle_worker_that_died_is_replaced_when_there_are_other_scores(two_workers, retried, deaths):
    worker = two_workers._idle[0]
    ray.kill(worker)
    with pytest.raises(ray.exceptions.RayActorError):
        wait_for(worker)
    archs = SPACE.decode([[a, 0] for a in range(7)])
    outcomes = sorted(two_workers.by({"sum": sums})(archs), key=lambda outcome: outcome.index)
    assert [outcome.scores["sum"] for outcome in outcomes] == sums(archs)
    (line,) = retried
    assert "a worker died while it had nothing to do" in line
    two_workers.by({"sum": SumsOrDies(deaths)})


def test_an_architecture_that_always_kills_its_worker_fails_alone(two_workers, retried, deaths):
    for number in range(10):
        (deaths / str(number)).touch()
    archs = SPACE.decode([[a, 0] for a in range(7)])
    outcomes = {outcome.index: outcome for outcome in two_workers(archs)}
    assert sorted(outcomes) == list(range(7))
    assert {index for index, outcome in outcomes.items() if outcome.error} == {3}
    assert "killed its worker 3 times" in outcomes[3].error
    assert len(retried) == 10 - len(list(deaths.iterdir())) == 4  # with a neighbour first


def test_failures_are_recorded_and_do_not_stop_the_search(tmp_path):
    p = Problem(SPACE, ["x"])
    with (
        RayEvaluator(SPACE, {"x": fails_on_threes}, 1) as evaluate,
        History(tmp_path / "history.jsonl", p.describe()) as history,
    ):
        result = ask_and_tell(p, Evolution(p, 0, EvolutionConfig(50)), evaluate, 100, history=history)
    assert len(result.evaluations) == 100  # the whole space
    alone = ask_and_tell(p, Evolution(p, 0, EvolutionConfig(50)), evaluate_here({"x": fails_on_threes}), 100)
    assert result.evaluations == alone.evaluations
    for evaluation in result.evaluations:
        a, b = evaluation.arch["a"], evaluation.arch["b"]
        expected = "x: RuntimeError: three" if a == 3 else "x is nan" if b == 4 else None
        assert evaluation.error == expected
        assert evaluation.scores == ({} if expected else {"x": float(a)})


def how_many(archs):
    return [float(len(archs))] * len(archs)


@pytest.mark.exhaustive  # half a minute of Ray
def test_no_more_architectures_go_together_than_may(address):
    with RayEvaluator(SPACE, {"count": how_many}, 1, together=2) as evaluate:
        outcomes = list(evaluate(SPACE.decode([[a, 0] for a in range(9)])))
    assert sorted(outcome.scores["count"] for outcome in outcomes) == [1.0] + [2.0] * 8


def test_a_cluster_has_room_for_what_its_cpus_and_gpus_allow():
    assert room({"CPU": 7}, 2, 0) == 3
    assert room({"CPU": 7, "GPU": 1}, 2, 0.5) == 2
    assert room({"CPU": 7}, 1, 1) == 0


def test_workers_have_no_torch_when_their_scores_need_none():
    def has_torch(archs):  # inside, because workers would import this module otherwise
        return [float("torch" in sys.modules)] * len(archs)

    with RayEvaluator(SPACE, {"torch": has_torch}, 1) as evaluate:
        assert [outcome.scores for outcome in evaluate([SPACE.smallest])] == [{"torch": 0.0}]


def of_a_supernet():
    """A space of networks, and a score by their accuracy."""
    # here, because the workers of most tests import this module and need no family
    from search.scores.accuracy import SupernetAccuracy, resized
    from supernet.families import FAMILIES

    family = FAMILIES["mobilenet_v3_micro"](num_classes=10)
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(80, 3, 32, 32, generator=generator)
    images = resized(both[:40], both[40:], torch.randint(10, (40,), generator=generator))
    return family.space, SupernetAccuracy(family.supernet(), images, family.resolution, 20)


@pytest.mark.exhaustive  # as the search of an own task by workers
def test_supernet_accuracies_are_those_of_one_process():
    from search.scores.accuracy import WithExamples

    space, score = of_a_supernet()
    archs = [space.sample(np.random.default_rng(seed)) for seed in range(6)]
    expected = score(archs)
    with RayEvaluator(space, {"accuracy": score}, 2) as evaluate:
        outcomes = {outcome.index: outcome for outcome in evaluate(archs)}
        judged = list(evaluate.by({"accuracy": WithExamples(score)})(archs))
        some = np.array([30, 2, 17])
        parts = {outcome.index: outcome.scores["accuracy"].per_example for outcome in evaluate(archs, some)}
    assert [outcomes[index].scores["accuracy"] for index in range(6)] == expected
    here = dict(score.judged(archs))
    for outcome in judged:
        found, wanted = outcome.scores["accuracy"], here[outcome.index]
        assert found.score == wanted.score == expected[outcome.index]
        np.testing.assert_array_equal(found.per_example, wanted.per_example)
        np.testing.assert_array_equal(parts[outcome.index], wanted.per_example[some])


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


@pytest.mark.exhaustive  # a cluster of its own, for a device that is not here
def test_scores_are_sent_from_the_cpu_and_run_there_on_workers_without_a_gpu(elsewhere):
    space, score = of_a_supernet()
    (expected,) = score([space.smallest])
    scores = {"accuracy": score.to(elsewhere), "place": Place()}
    with RayEvaluator(space, scores, 1) as evaluate:
        outcomes = [outcome.scores for outcome in evaluate([space.smallest])]
    assert outcomes == [{"accuracy": expected, "place": 0.0}]


def test_parts_are_of_one_gpu_each():
    check_resources({"CPU": 8, "GPU": 2}, 6, 1, 0.33)
    check_resources({"CPU": 8, "GPU": 1}, 8, 1, 0.125)
    message = "3 workers with 0.6 of a GPU each need 3 GPUs, but the Ray cluster has 2; use fewer workers or smaller"
    with pytest.raises(ValueError, match=message):  # which together are less than two
        check_resources({"CPU": 8, "GPU": 2}, 3, 1, 0.6)


def test_too_few_cpus_are_an_error():
    with pytest.raises(ValueError, match="5 workers need 5 CPUs, but the Ray cluster has 4"):
        RayEvaluator(SPACE, {"sum": sums}, 5)


class SumsOrHangs:
    """Sums, until 12 architectures have been seen by all workers together."""

    def __init__(self, folder):
        self.seen = Path(folder, "seen")

    def __call__(self, archs):
        with self.seen.open("a") as file:
            file.write("\n" * len(archs))
        if self.seen.stat().st_size > 12:
            time.sleep(10**6)
        return sums(archs)


ROOT = Path(__file__).parents[2]
DRIVER = """
import sys
from tests.search.test_parallel import *

address, folder = sys.argv[1:]
with (
    RayEvaluator(SPACE, {"sum": SumsOrHangs(folder)}, 2, address=address) as evaluate,
    History(Path(folder, "history.jsonl"), problem().describe()) as history,
):
    search(evaluate, history=history)
"""


def test_a_killed_driver_loses_nothing_that_was_evaluated(address, here, tmp_path):
    path = tmp_path / "history.jsonl"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, address, tmp_path], cwd=ROOT)
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
    assert 9 <= len(kept) <= 12
    assert kept.isdisjoint(again)
    assert resumed.evaluations == here


class Mapped:
    """1 if the images are in memory that the object store has mapped, and were not loaded here."""

    def __init__(self, batches):
        self.batches = batches

    def __call__(self, archs):
        self.batches._data = None
        address = self.batches(32).evaluation[0].values.data_ptr()
        for line in Path("/proc/self/maps").read_text().splitlines():
            start, end = (int(place, 16) for place in line.split()[0].split("-"))
            if start <= address < end:
                return [float("plasma" in line or "/dev/shm" in line)] * len(archs)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not list what is mapped in /proc")
def test_workers_of_a_machine_read_one_copy_of_the_images():
    batches = RunBatches(load_data(DataConfig()), 20, 0, None)
    batches.load([32])
    with RayEvaluator(SPACE, {"mapped": Mapped(batches)}, 1) as evaluate:
        (outcome,) = evaluate(SPACE.decode([[0, 0]]))
    assert outcome.scores == {"mapped": 1.0}, outcome.error
