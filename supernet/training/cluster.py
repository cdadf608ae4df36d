"""Training by the workers of a Ray cluster, through Ray Train: where one is lost, all go on from a checkpoint."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from supernet.artifacts.ownership import owned
from supernet.artifacts.runs import Job, data_of, open_data, run_job
from supernet.artifacts.storage import beneath, is_address, shown
from supernet.conditions import GIVEN, only_where
from supernet.errors import first_line
from supernet.own_code import absolute, modules_from_files
from supernet.training import distributed
from supernet.training.execution import worker_device
from supernet.training.loop import StepResult
from supernet.training.loop.divergence import TrainingError

WORKERS = 4
"""Processes that load a worker's images, for which it has CPUs, if the execution says nothing."""

CHECKPOINT_STEPS = 200
"""Steps between checkpoints, which all workers wait for, if the execution says nothing."""


@dataclass(frozen=True)
class Cluster:
    """Who trains, and where they leave their checkpoints."""

    cluster: str | None = None
    """Train on the Ray cluster at this address, auto for the one that this machine belongs to, local to start one."""
    cluster_workers: Annotated[int, only_where(cluster=GIVEN)] = 1
    """Processes that train on the cluster; each takes a CPU for every process that loads its images, at least one."""
    gpus_per_worker: Annotated[int, only_where(cluster=GIVEN)] = 0
    """GPUs of each of them, 0 or 1."""
    storage: Annotated[str | None, only_where(cluster=GIVEN)] = None
    """Folder that all machines of the cluster see, or an address that Ray can write to (s3://, ...), for checkpoints;
    by default the folder cluster beside the output folder."""
    max_failures: Annotated[int, only_where(cluster=GIVEN)] = 3
    """How often the training goes on by itself after a worker of the cluster was lost."""

    def __post_init__(self):
        if self.cluster_workers < 1:
            raise ValueError(f"cluster_workers is at least 1, not {self.cluster_workers}")
        if self.gpus_per_worker not in (0, 1):
            raise ValueError(f"gpus_per_worker is 0 or 1, not {self.gpus_per_worker}: say more cluster_workers instead")
        if self.max_failures < 0:
            raise ValueError(f"max_failures is 0 or more, not {self.max_failures}")


def run_on_cluster(job: Job, output: Path, cluster: Cluster, *, resume: bool = False) -> None:
    """Train the supernet that `job` describes on `cluster`, and put its run into the folder `output` at the end.

    Meanwhile its checkpoints, each with the rest of the run's folder, are in the storage, under the name of `output`,
    after every `checkpoint_steps`. With `resume` a training goes on from there whose driver was lost; one that was not
    begun begins. Images, and files of code of one's own, lie under the same path on all machines.

    Uses the running Ray, or joins a cluster or starts a local one. TrainingError if the training diverges. ValueError
    if there is a run already, unless `resume` is said and the storage has its checkpoints; if it was begun with other
    settings; for a device that workers are not given; or if the cluster has too few CPUs or GPUs. LostProcess if
    workers fail more than `max_failures` times.
    """
    output = output.absolute()
    storage = cluster.storage or str(output.parent / "cluster")
    storage = storage if is_address(storage) else os.path.abspath(storage)
    job = replace(job, space=absolute(job.space), data=replace(job.data, dataset=absolute(job.data.dataset)))
    job = replace(job, data=data_of(job))
    worker_device(job.execution.device, cluster.gpus_per_worker)
    device = "auto" if cluster.gpus_per_worker else "cpu"  # of several GPUs of a machine, auto takes this worker's
    steps = job.execution.checkpoint_steps or CHECKPOINT_STEPS
    job = replace(job, execution=replace(job.execution, device=device, checkpoint_steps=steps))
    _check(job, cluster.cluster_workers)
    with owned(output):
        stored = beneath(storage, output.name)
        begun = _has_checkpoints(stored)
        if (output / "config.json").exists() and not (resume and begun):
            missing = f", of which {shown(stored)} has no checkpoint" if resume else ""
            raise ValueError(f"{output} holds a run already{missing}: name another output")
        if begun and not resume:
            raise ValueError(
                f"{shown(stored)} holds a training already: add --resume to go on with it, or name another output or "
                "storage"
            )
        import ray

        started = not ray.is_initialized()
        if job.execution.workers is None:  # the cores of a machine are not all a worker's
            job = replace(job, execution=replace(job.execution, workers=WORKERS))
        cpus = max(1, job.execution.workers)
        if started:
            is_local = cluster.cluster == "local"
            here = {"num_cpus": cluster.cluster_workers * cpus, "include_dashboard": False} if is_local else {}
            ray.init(address=cluster.cluster, log_to_driver=False, logging_level=logging.ERROR, **here)
        try:
            workers = cluster.cluster_workers
            needed = {"CPU": workers * cpus, "GPU": workers * cluster.gpus_per_worker}
            remedy = "say fewer cluster_workers, or fewer workers that load images"
            check_room(ray.cluster_resources(), needed, f"{workers} workers", remedy)
            checkpoint = _train(job, cluster, storage, output.name, cpus)
            with tempfile.TemporaryDirectory(dir=output) as folder:
                checkpoint.to_directory(folder)
                for path in sorted(Path(folder).iterdir(), key=lambda path: path.name == "config.json"):
                    _replace(path, output / path.name)
        finally:
            if started:
                ray.shutdown()


def _check(job: Job, workers: int) -> None:
    """What else every worker would find out, over and over."""
    data = open_data(job.data, job.train.seed)
    job.family(data.family_arguments)
    distributed.check_split(job.train.batch_size, workers, job.train.accumulation)


def check_room(available: Mapping[str, float], needed: Mapping[str, int], who: str, remedy: str) -> None:
    """ValueError, naming `who` needs it and the `remedy`, unless a Ray cluster has what is `needed`."""
    for name, count in needed.items():
        if count > available.get(name, 0):
            raise ValueError(
                f"{who} need {count} {name}s, but the Ray cluster has {available.get(name, 0):g}; {remedy}"
            )


def _train(job: Job, cluster: Cluster, storage: str, name: str, cpus: int) -> Any:
    """The checkpoint that holds the finished run."""
    import ray
    from ray import train
    from ray.train.torch import TorchTrainer

    for module in modules_from_files():  # workers get the code itself
        ray.cloudpickle.register_pickle_by_value(module)
    resources = {"CPU": cpus, **({"GPU": cluster.gpus_per_worker} if cluster.gpus_per_worker else {})}
    trainer = TorchTrainer(
        partial(_work, job, list(sys.argv)),
        scaling_config=train.ScalingConfig(
            num_workers=cluster.cluster_workers,
            use_gpu=bool(cluster.gpus_per_worker),
            resources_per_worker=resources,
        ),
        run_config=train.RunConfig(
            name=name,
            storage_path=storage,
            failure_config=train.FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=train.CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        result = trainer.fit()
    except train.TrainingFailedError as error:
        failures = getattr(error, "worker_failures", {0: error})
        causes = [*(e for e in failures.values() if not isinstance(e, distributed.LostProcess)), *failures.values()]
        raise distributed.LostProcess(
            f"the training failed more than {cluster.max_failures} times, and goes on with --resume; the last time it "
            f"was: {first_line(causes[0])}"
        ) from error
    if result.return_value is not None:
        raise TrainingError(result.return_value)
    return result.checkpoint


def _has_checkpoints(path: str) -> bool:
    """Whether Ray Train has left any in the folder, or at the address, `path`."""
    from pyarrow import fs

    files, place = fs.FileSystem.from_uri(path)
    found = files.get_file_info(fs.FileSelector(place, allow_not_found=True))
    return any(info.base_name.startswith("checkpoint_") for info in found)


def _work(job: Job, command: list[str]) -> str | None:
    """What each worker does, in a process group that Ray Train has set up; says why the training cannot go on."""
    from ray import train

    sys.argv = command  # what a run notes down
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        checkpoint = train.get_checkpoint()
        if checkpoint and distributed.rank() == 0:
            checkpoint.to_directory(directory)

        def report(step: int) -> None:
            """Take the run's folder to the storage, when all workers have come here."""
            own = train.Checkpoint.from_directory(directory) if distributed.rank() == 0 else None
            train.report({"step": step}, checkpoint=own)

        def on_step(result: StepResult) -> None:
            if result.is_kept:
                report(result.step)

        try:
            run_job(job, directory, resume=True, on_step=on_step)
        except TrainingError as error:  # in all workers, each time that they would come here
            return str(error)
        report(-1)
    return None


def _replace(path: Path, place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    os.replace(path, place)
