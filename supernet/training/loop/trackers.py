"""Where a training's metrics are shown as it goes, besides metrics.jsonl: TensorBoard, Weights & Biases, MLflow.

Each is optional, and its package an extra. None of them is needed to go on, and what one cannot be told ends no
training.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypedDict

from supernet.artifacts.atomic import set_aside, write_json
from supernet.artifacts.reading import read_json
from supernet.imports import require
from supernet.training.execution import Execution

logger = logging.getLogger(__name__)


class Identity(TypedDict):
    """What a tracker's service calls a run, in wandb.json or mlflow.json."""

    id: str


MOST_CHARACTERS = 500  # of a setting, as MLflow has it


class Tracker(Protocol):
    """Shows the metrics of one training."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, such as losses/0, after the step `step`, counted from 1."""

    def close(self) -> None:
        """The training is over."""


def trackers(run_dir: Path, step: int, execution: Execution) -> list[Tracker]:
    """Those that `execution` asks for, of the training in `run_dir` that goes on after `step`, or begins at 0."""
    found: list[Tracker] = []
    if execution.tensorboard:
        found.append(TensorBoard(run_dir, step))
    if execution.wandb is not None:
        found.append(WeightsAndBiases(execution.wandb, run_dir, step))
    if execution.mlflow is not None:
        found.append(MLflow(execution.mlflow, run_dir, step))
    return found


def require_trackers(execution: Execution) -> None:
    """ModuleNotFoundError, with what installs it, for a package that `execution` needs and that is missing."""
    for name in ("tensorboard", "wandb", "mlflow"):
        if getattr(execution, name):
            require(name)


class TensorBoard:
    """Files in `run_dir/tensorboard/`; what is done again after `step` is dropped from them."""

    def __init__(self, run_dir: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = run_dir / "tensorboard"
        if not step and (aside := set_aside(path)):
            logger.warning("what an earlier training wrote to %s is now in %s", path, aside.name)
        self._writer = SummaryWriter(str(path), purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run in a project of Weights & Biases, which goes on with the training; it takes no step twice."""

    def __init__(self, project: str, run_dir: Path, step: int) -> None:
        wandb = require("wandb")
        known = _known(run_dir / "wandb.json", step)
        identity = known or uuid.uuid4().hex[:16]
        options = {"project": project, "id": identity, "resume": "allow", "name": run_dir.resolve().name}
        try:
            self._run = wandb.init(dir=str(run_dir), config=settings(run_dir), **options)
        except wandb.Error as error:
            raise ValueError(
                f"Weights & Biases takes no run: {error}; say wandb login, or WANDB_MODE=offline"
            ) from error
        _keep(run_dir / "wandb.json", identity)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run in an experiment of MLflow, at the address that MLFLOW_TRACKING_URI says; it goes on with the training."""

    def __init__(self, experiment: str, run_dir: Path, step: int) -> None:
        self._mlflow = require("mlflow")
        self._error = self._mlflow.exceptions.MlflowException
        known = _known(run_dir / "mlflow.json", step)
        try:
            self._client = self._mlflow.MlflowClient()
            self._identity = known or self._new_run(experiment, run_dir)
            self._client.update_run(self._identity, "RUNNING")
        except self._error as error:
            uri = self._mlflow.get_tracking_uri()
            raise ValueError(f"MLflow takes no run at {uri}: {error}; say where by MLFLOW_TRACKING_URI") from error
        _keep(run_dir / "mlflow.json", self._identity)

    def _new_run(self, experiment: str, run_dir: Path) -> str:
        """What MLflow calls it."""
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        identity = self._client.create_run(number, run_name=run_dir.resolve().name).info.run_id
        for name, value in settings(run_dir).items():
            self._client.log_param(identity, name, str(value)[:MOST_CHARACTERS])
        return identity

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metric = self._mlflow.entities.Metric
        metrics = [metric(name, float(value), now, step) for name, value in values.items()]
        try:
            self._client.log_batch(self._identity, metrics=metrics)
        except self._error as error:  # after tries of its own
            logger.warning("MLflow was not told of step %d: %s", step, error)

    def close(self) -> None:
        self._client.set_terminated(self._identity)


def settings(run_dir: Path) -> dict[str, Any]:
    """The settings of the run that the training is of, or is a phase of, by names such as train.lr."""
    for folder in (run_dir, run_dir.parent):
        if (folder / "config.json").exists():
            return dict(_flat(json.loads((folder / "config.json").read_text()).get("job", {})))
    return {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value


def _known(path: Path, step: int) -> str | None:
    """What the run is called there, if the training goes on after a `step`."""
    if not step or not path.exists():
        return None
    return read_json(path, Identity, "name of a run")["id"]


def _keep(path: Path, identity: str) -> None:
    write_json(path, {"id": identity}, indent=None)
