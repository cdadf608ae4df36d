"""Sweeps of cheap searches on two local Ray workers."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest

from search.history import History
from search.problem import Problem
from search.run import evaluate_here, run
from search.strategies import make_strategy
from search.sweep import run_sweep, write_sweep
from supernet import SearchSpace

SPACE = SearchSpace({"a": tuple(range(10)), "b": tuple(range(10))})
TRIALS = [
    {"strategy": "evolution", "device": "phone", "limit": 8.0, "seed": 0},
    {"strategy": "random", "device": "phone", "limit": 8.0, "seed": 1},
    {"strategy": "evolution", "device": "watch", "limit": 8.0, "seed": 0},
]


def total(archs):
    return [float(arch["a"] + arch["b"]) for arch in archs]


def search(settings, history, on_generation, before=None):
    slower = {"phone": "a", "watch": "b"}[settings["device"]]
    costs = {"ms": lambda archs: [1.0 + arch[slower] for arch in archs]}
    problem = Problem(SPACE, ["total"], costs, {"ms": settings["limit"]})
    strategy = make_strategy(settings["strategy"], problem, settings["seed"], 6)

    def score(archs):
        if before:
            before(settings)
        return total(archs)

    with History(history, problem.describe(), resume=True) as record:
        run(problem, strategy, evaluate_here({"total": score}), 24, history=record, on_generation=on_generation)


@pytest.fixture(scope="module")
def local_ray():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def undisturbed(local_ray, tmp_path_factory):
    return run_sweep(search, TRIALS, str(tmp_path_factory.mktemp("sweep")), "undisturbed")


def outcome(sweep):
    return sorted((sorted(t.settings.items()), sorted(t.metrics.items()), t.evaluations, t.error) for t in sweep.trials)


@pytest.mark.filterwarnings("ignore")
def test_every_trial_is_a_whole_search(undisturbed, tmp_path):
    assert len(undisturbed.trials) == len(TRIALS)
    for trial in undisturbed.trials:
        assert trial.error is None
        assert len(trial.evaluations) == trial.metrics["evaluated"] == 24
    assert undisturbed.retried == []
    write_sweep(undisturbed, tmp_path, {"phone": "ms", "watch": "ms"})
    with (tmp_path / "trials.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(TRIALS)
    with (tmp_path / "front_phone.csv").open() as file:
        front = list(csv.DictReader(file))
    latencies = [float(row["ms"]) for row in front]
    totals = [float(row["total"]) for row in front]
    assert latencies == sorted(latencies)
    assert totals == sorted(totals)
    assert {row["device"] for row in front} == {"phone"}


class KillOnce:
    """Kills the process the second time that a certain trial evaluates."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, settings, history, on_generation):
        def before(settings):
            if settings == TRIALS[0]:
                seen = len(list(self.folder.iterdir()))
                (self.folder / str(seen)).touch()
                if seen == 2:
                    os.kill(os.getpid(), signal.SIGKILL)

        search(settings, history, on_generation, before)


@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_changes_nothing(undisturbed, tmp_path):
    (tmp_path / "seen").mkdir()
    sweep = run_sweep(KillOnce(tmp_path / "seen"), TRIALS, str(tmp_path), "disturbed")
    assert outcome(sweep) == outcome(undisturbed)
    assert len(sweep.retried) == 1
    assert "'strategy': 'evolution'" in sweep.retried[0]


# what Ray has set in this process is not for another cluster's driver
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parents[2]))
from tests.search.test_sweep import *

run_sweep(search_slowly, TRIALS, sys.argv[2], "killed", workers=2)
"""


def search_slowly(settings, history, on_generation):
    search(settings, history, on_generation, before=lambda settings: time.sleep(1))


@pytest.mark.filterwarnings("ignore")
def test_a_killed_driver_loses_no_generation(undisturbed, tmp_path):
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, __file__, tmp_path], start_new_session=True, env=ENVIRONMENT
    )
    while (
        len(list(tmp_path.glob("killed/*/checkpoint_*/generations.json"))) < 5
    ):  # two are kept of each of three trials
        assert driver.poll() is None
        time.sleep(0.1)
    driver.kill()
    driver.wait()
    with pytest.raises(ValueError, match="holds a sweep already: resume it, or choose another name"):
        run_sweep(search, TRIALS, str(tmp_path), "killed")
    seen = []
    sweep = run_sweep(
        search, TRIALS, str(tmp_path), "killed", resume=True, on_generation=lambda settings, m: seen.append(m)
    )
    assert outcome(sweep) == outcome(undisturbed)
    # what was done before the kill is not done again, but for what each of two workers had just handed in
    assert 0 < len(seen) <= 12 - 3


def test_nothing_to_resume_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no sweep to resume"):
        run_sweep(search, TRIALS, str(tmp_path), "none", resume=True)
