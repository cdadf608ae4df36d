"""Sweeps of cheap searches on two local Ray workers."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray import tune

from search.evaluator import evaluate_here
from search.history import History
from search.loop import ask_and_tell
from search.problem import Problem
from search.strategies import make_strategy
from search.sweep import run_sweep, write_sweep
from supernet import SearchSpace
from tests.object_store import object_store

SPACE = SearchSpace({"a": tuple(range(10)), "b": tuple(range(10))})
TRIALS = [
    {"strategy": "evolution", "device": "phone", "limit": 8.0, "seed": 0},
    {"strategy": "random", "device": "phone", "limit": 8.0, "seed": 1},
    {"strategy": "evolution", "device": "watch", "limit": 8.0, "seed": 0},
]


def total(archs):
    return [float(arch["a"] + arch["b"]) for arch in archs]


class Total:
    """The sum of both choices, one architecture at a time, `before` each of which something happens."""

    def __init__(self, before):
        self.before = before

    def each(self, archs):
        for index, arch in enumerate(archs):
            if self.before:
                self.before(arch)
            yield index, total([arch])[0]


def search(settings, history, storage, on_generation, before=None):
    slower = {"phone": "a", "watch": "b"}[settings["device"]]
    costs = {"ms": lambda archs: [1.0 + arch[slower] for arch in archs]}
    problem = Problem(SPACE, ["total"], costs, {"ms": settings["limit"]})
    strategy = make_strategy(settings["strategy"], problem, settings["seed"], 6)
    evaluate = evaluate_here({"total": Total(before)})
    with History(history, problem.describe(), resume=True, storage=storage) as record:
        ask_and_tell(problem, strategy, evaluate, 24, history=record, on_generation=on_generation)


def search_on_a_gpu(settings, history, storage, on_generation, learnt):
    assert learnt == "for all"
    assert ray.get_runtime_context().get_accelerator_ids()["GPU"] == ["0"]
    search(settings, history, storage, on_generation)


@pytest.fixture(scope="module")
def address():
    """Of a local Ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "0")  # one GPU, whether it is there or not
        started = ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield started.address_info["address"]
    ray.shutdown()


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def undisturbed(address, storage):
    calls = []

    def prepare():
        calls.append(storage)
        return {"learnt": "for all"}

    sweep = run_sweep(search_on_a_gpu, TRIALS, str(storage), "undisturbed", gpus=0.25, prepare=prepare)
    assert len(calls) == 1
    return sweep


def outcome(sweep):
    return sorted((sorted(t.settings.items()), sorted(t.metrics.items()), t.evaluations, t.error) for t in sweep.trials)


@pytest.mark.filterwarnings("ignore")
def test_every_trial_is_a_whole_search(undisturbed, tmp_path):
    assert len(undisturbed.trials) == len(TRIALS)
    for trial in undisturbed.trials:
        assert trial.error is None
        assert trial.seconds > 0
        assert len(trial.evaluations) == trial.metrics["evaluated"] == 24
    assert undisturbed.retried == []
    write_sweep(undisturbed, tmp_path, {"phone": "ms", "watch": "ms"}, "total")
    with (tmp_path / "trials.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(TRIALS)
    with (tmp_path / "front_phone.csv").open() as file:
        front = list(csv.DictReader(file))
    latencies = [float(row["ms"]) for row in front]
    totals = [float(row["total"]) for row in front]
    assert latencies == sorted(latencies)
    assert totals == sorted(totals)
    assert {row["device"] for row in front} == {"phone"}


def test_a_trial_that_there_is_no_room_for_is_refused(address, tmp_path):
    with pytest.raises(ValueError, match="1 workers need 3 CPUs, but the Ray cluster has 2"):
        run_sweep(search, TRIALS, str(tmp_path), "large", threads=3, prepare=pytest.fail)


class KillOnce:
    """Kills the process in the third generation of a certain trial."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, settings, history, storage, on_generation):
        def before(arch):
            if settings == TRIALS[0]:
                seen = len(list(self.folder.iterdir()))
                (self.folder / str(seen)).touch()
                if seen == 15:
                    os.kill(os.getpid(), signal.SIGKILL)

        search(settings, history, storage, on_generation, before)


@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_changes_nothing(undisturbed, tmp_path):
    (tmp_path / "seen").mkdir()
    sweep = run_sweep(KillOnce(tmp_path / "seen"), TRIALS, str(tmp_path), "disturbed")
    assert outcome(sweep) == outcome(undisturbed)
    assert len(sweep.retried) == 1
    assert "'strategy': 'evolution'" in sweep.retried[0]
    assert len(list((tmp_path / "seen").iterdir())) == 24 + 1  # only what killed the worker was evaluated again


class Logged:
    """A search that notes each evaluation in `folder`, and hangs after 21 of all trials together if it is to, or kills
    its process at the 50th."""

    def __init__(self, folder, hangs=False, dies=False):
        self.log = Path(folder, "log")
        self.hangs = hangs
        self.dies = dies

    def __call__(self, settings, history, storage, on_generation):
        def before(arch):
            with self.log.open("a") as file:
                file.write(f"{os.getpid()} {settings} {arch}\n")
            if self.hangs and len(self.lines()) > 21:
                time.sleep(10**6)
            if self.dies and len(self.lines()) == 50:
                os.kill(os.getpid(), signal.SIGKILL)

        search(settings, history, storage, on_generation, before)

    def lines(self):
        return self.log.read_text().splitlines() if self.log.exists() else []

    def workers(self):
        return {int(line.split()[0]) for line in self.lines()}


ROOT = Path(__file__).parents[2]
DRIVER = """
import sys
from tests.search.test_sweep import *

address, folder, storage = sys.argv[1:]
run_sweep(Logged(folder, hangs=True), TRIALS, storage, "killed", workers=2, address=address)
"""


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def drive_and_kill(address, folder, storage):
    """The log of a sweep whose driver was killed."""
    logged = Logged(folder)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, address, folder, storage], cwd=ROOT)
    while len(logged.lines()) <= 21:  # beyond the first generation of six
        assert driver.poll() is None
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    while ray.available_resources().get("CPU", 0) < 2 or any(map(is_running, logged.workers())):
        time.sleep(0.01)
    assert len(logged.lines()) <= 23
    return logged


@pytest.mark.exhaustive  # of one search it is tested as well, and of a driver that is killed in between
@pytest.mark.filterwarnings("ignore")
def test_a_killed_driver_loses_nothing_evaluated(undisturbed, address, tmp_path):
    logged = drive_and_kill(address, tmp_path, tmp_path)
    with pytest.raises(ValueError, match="holds a sweep already: resume it, or choose another name"):
        run_sweep(search, TRIALS, str(tmp_path), "killed")
    sweep = run_sweep(logged, TRIALS, str(tmp_path), "killed", resume=True)
    assert outcome(sweep) == outcome(undisturbed)
    # only what each of two workers was busy with is evaluated again
    evaluated = [line.split(maxsplit=1)[1] for line in logged.lines()]
    assert len(set(evaluated)) == 3 * 24
    assert len(evaluated) <= 3 * 24 + 2


@pytest.mark.exhaustive  # the same against files is tested above
@pytest.mark.filterwarnings("ignore")
def test_a_killed_driver_and_a_killed_worker_lose_nothing_evaluated_in_an_object_store(
    undisturbed, address, tmp_path, monkeypatch
):
    monkeypatch.delenv("TUNE_GLOBAL_CHECKPOINT_S", raising=False)  # which other sweeps of this process have set
    with object_store() as store:
        storage = store.address("bucket/sweeps")
        logged = drive_and_kill(address, tmp_path, storage)
        sweep = run_sweep(Logged(tmp_path, dies=True), TRIALS, storage, "killed", resume=True)
        assert all(key.startswith("bucket/sweeps/") for key in store.objects)
    assert outcome(sweep) == outcome(undisturbed)
    assert len(sweep.retried) == 1
    evaluated = [line.split(maxsplit=1)[1] for line in logged.lines()]
    assert len(set(evaluated)) == 3 * 24
    assert len(evaluated) <= 3 * 24 + 2 + 1
    assert {path.name for path in tmp_path.iterdir()} == {"log"}


class Killed(Exception):
    pass


def is_killed(tuner):
    raise Killed


@pytest.mark.filterwarnings("ignore")
def test_a_driver_that_is_killed_before_it_noted_a_trial_is_resumed(undisturbed, storage, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tune.Tuner, "fit", is_killed)
        with pytest.raises(Killed):
            run_sweep(search, TRIALS, str(tmp_path), "killed")
    assert not list((tmp_path / "killed").glob("experiment_state*"))
    for folder in sorted((storage / "undisturbed" / "histories").iterdir())[1:]:  # workers may have got further
        shutil.copytree(folder, tmp_path / "killed" / "histories" / folder.name)
    logged = Logged(tmp_path)
    assert outcome(run_sweep(logged, TRIALS, str(tmp_path), "killed", resume=True)) == outcome(undisturbed)
    assert len(logged.lines()) == 24


def die(settings, history, storage, on_generation):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.filterwarnings("ignore")
def test_a_trial_whose_worker_always_dies_is_a_failed_one(address, tmp_path):
    (trial,) = run_sweep(die, TRIALS[:1], str(tmp_path), "dead", max_failures=0).trials
    assert (trial.settings, trial.evaluations) == (TRIALS[0], [])
    assert "died" in trial.error


def test_nothing_to_resume_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no sweep to resume"):
        run_sweep(search, TRIALS, str(tmp_path), "none", resume=True)
