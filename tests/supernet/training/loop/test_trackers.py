"""What trackers are told, by stand-ins of their packages that note it."""

import json
import sys
from types import SimpleNamespace

import pytest

from supernet.training.execution import Execution
from supernet.training.loop.metrics import Metrics

CONFIG = {"job": {"train": {"lr": 0.1, "clip": None}, "space": "s" * 600}}


class Error(Exception):
    pass


@pytest.fixture
def wandb(monkeypatch):
    """Notes how runs began and what they were told."""
    noted = SimpleNamespace(begun=[], told=[], finished=0)

    def init(**options):
        if options["project"] == "locked":
            raise Error("no key")
        noted.begun.append(options)
        return SimpleNamespace(log=lambda values, step: noted.told.append((step, values)), finish=finish)

    def finish():
        noted.finished += 1

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Error=Error))
    return noted


@pytest.fixture
def mlflow(monkeypatch):
    """A client that keeps experiments and runs by their names."""
    kept = SimpleNamespace(experiments={}, runs={}, statuses=[], is_down=False)

    class Client:
        def get_experiment_by_name(self, name):
            return SimpleNamespace(experiment_id=kept.experiments[name]) if name in kept.experiments else None

        def create_experiment(self, name):
            if name == "locked":
                raise Error("no access")
            return kept.experiments.setdefault(name, f"e{len(kept.experiments)}")

        def create_run(self, experiment, run_name):
            identity = f"r{len(kept.runs)}"
            kept.runs[identity] = {"experiment": experiment, "name": run_name, "params": {}, "metrics": []}
            return SimpleNamespace(info=SimpleNamespace(run_id=identity))

        def log_param(self, run, name, value):
            kept.runs[run]["params"][name] = value

        def log_batch(self, run, metrics):
            if kept.is_down:
                raise Error("down")
            kept.runs[run]["metrics"] += [(own[3], own[0], own[1]) for own in metrics]

        def update_run(self, run, status):
            kept.statuses.append((run, status))

        def set_terminated(self, run):
            kept.statuses.append((run, "FINISHED"))

    package = SimpleNamespace(
        MlflowClient=Client,
        exceptions=SimpleNamespace(MlflowException=Error),
        entities=SimpleNamespace(Metric=lambda *values: values),
        get_tracking_uri=lambda: "http://there",
    )
    monkeypatch.setitem(sys.modules, "mlflow", package)
    return kept


def train(run_dir, execution, steps, start=0):
    (run_dir / "config.json").write_text(json.dumps(CONFIG))
    metrics = Metrics(run_dir, start, execution)
    for step in steps:
        metrics.append({"step": step, "losses": [0.5, step / 4]})
    metrics.close()


def test_a_run_of_wandb_goes_on_with_the_training_and_a_new_one_begins_with_a_new_one(tmp_path, wandb):
    execution = Execution(wandb="digits")
    train(tmp_path, execution, (1, 2))
    train(tmp_path, execution, (3,), start=2)
    train(tmp_path, execution, (1,))
    first, second, third = wandb.begun
    assert (first["project"], first["resume"], first["name"]) == ("digits", "allow", tmp_path.name)
    assert first["config"] == {"train.lr": 0.1, "space": "s" * 600}
    assert first["id"] == second["id"] != third["id"]
    told = [(step, {"losses/0": 0.5, "losses/1": step / 4}) for step in (1, 2, 3, 1)]
    assert wandb.told == told
    assert wandb.finished == 3


def test_a_run_of_mlflow_goes_on_with_the_training(tmp_path, mlflow):
    execution = Execution(mlflow="digits")
    train(tmp_path, execution, (1, 2))
    train(tmp_path, execution, (3,), start=2)
    assert list(mlflow.runs) == ["r0"]
    run = mlflow.runs["r0"]
    assert (run["experiment"], run["name"]) == ("e0", tmp_path.name)
    assert run["params"] == {"train.lr": "0.1", "space": "s" * 500}
    assert run["metrics"] == [
        (step, name, value) for step in (1, 2, 3) for name, value in (("losses/0", 0.5), ("losses/1", step / 4))
    ]
    assert mlflow.statuses == [("r0", "RUNNING"), ("r0", "FINISHED")] * 2
    train(tmp_path, execution, (1,))
    assert list(mlflow.runs) == ["r0", "r1"]
    assert mlflow.experiments == {"digits": "e0"}


def test_a_service_that_is_down_ends_no_training(tmp_path, mlflow, caplog):
    metrics = Metrics(tmp_path, 0, Execution(mlflow="digits"))
    metrics.append({"step": 1, "lr": 1.0})
    mlflow.is_down = True
    metrics.append({"step": 2, "lr": 0.5})
    assert "MLflow was not told of step 2: down" in caplog.text
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_service_that_takes_no_run_is_one_line(tmp_path, mlflow, wandb):
    with pytest.raises(ValueError, match="MLflow takes no run at http://there: no access; say where by"):
        Metrics(tmp_path, 0, Execution(mlflow="locked")).append({"step": 1})
    with pytest.raises(ValueError, match="Weights & Biases takes no run: no key; say wandb login"):
        Metrics(tmp_path, 0, Execution(wandb="locked")).append({"step": 1})


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_what_is_not_installed_is_told_before_the_first_step(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{name} is not installed: pip install 'supernet\[{name}\]'"):
        Metrics(tmp_path, 0, Execution(**{name: "digits"}))
