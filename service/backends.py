"""Where workers run: as processes of this machine, or as Ray Jobs of a cluster."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from service.worker import LOCK, PROGRAM, held
from supernet.artifacts.atomic import write_files
from supernet.errors import first_line

SOURCES = Path(__file__).parents[1]  # from which a worker imports this very version
STOPPED_WITHIN = 10.0  # seconds that a worker's processes take to be gone
SUBMISSION = "ray.txt"  # of a job, the id of its Ray Job


class Backend(Protocol):
    """Starts a worker for the job in a folder, knows whether anything of it runs, and ends it."""

    def start(self, folder: Path) -> None: ...

    def is_alive(self, folder: Path) -> bool: ...

    def stop(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class WorkerOptions:
    """What every worker is told."""

    devices: Path
    threads: int = 1
    offline: bool = False
    program: Sequence[str] = PROGRAM
    """What is run in the place of `supernet`."""

    def command(self, folder: Path) -> list[str]:
        said = ["--devices", str(self.devices), "--threads", str(self.threads), "--program", json.dumps(self.program)]
        offline = ["--offline"] if self.offline else []
        return [sys.executable, "-m", "service.worker", str(folder), *said, *offline]

    @property
    def environment(self) -> dict[str, str]:
        """Of workers, who find the packages wherever they start."""
        paths = [str(SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"PYTHONPATH": os.pathsep.join(paths)}


class LocalBackend:
    """Processes of this machine. They outlive the server, which finds them again by the locks that they hold."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._children: list[subprocess.Popen] = []

    def start(self, folder: Path) -> None:
        """The worker gets the lock with its first breath, so that there is no moment in which nobody has it.

        RuntimeError if another worker has it.
        """
        lock = held(folder)
        if lock is None:
            raise RuntimeError(f"a worker runs the job in {folder} already")
        try:
            os.ftruncate(lock, 0)
            with (folder / "worker.txt").open("ab") as output:
                child = subprocess.Popen(
                    [*self._options.command(folder), "--lock", str(lock)],
                    env=os.environ | self._options.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(lock,),
                    start_new_session=True,
                )
            os.pwrite(lock, str(child.pid).encode(), 0)
            self._children.append(child)
        finally:
            os.close(lock)  # which the worker has by now

    def is_alive(self, folder: Path) -> bool:
        """Whether the worker runs. What it leaves behind when it is killed is killed as well."""
        self._children = [child for child in self._children if child.poll() is None]
        if not _is_locked(folder):
            return False
        worker = _worker_of(folder)
        if worker is None or _runs(worker):
            return True
        self.stop(folder)  # the worker is gone, and a command of it still has the lock
        return False

    def stop(self, folder: Path) -> None:
        """Kill the worker and its commands, which can go on from what they have written.

        A process group has its number for as long as a process is in it, and one that holds the lock is.
        """
        until = time.monotonic() + STOPPED_WITHIN
        while _is_locked(folder):
            if (worker := _worker_of(folder)) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(worker, signal.SIGKILL)
            if time.monotonic() > until:
                raise RuntimeError(f"the processes of the job in {folder} do not end")
            time.sleep(0.02)


class RayBackend:
    """Ray Jobs of the cluster at `address`; the jobs' folders lie where every machine of it finds them.

    Each takes `threads` CPUs, and Ray starts as many at a time as there are resources.
    """

    RUNS = ("PENDING", "RUNNING")

    def __init__(self, options: WorkerOptions, address: str, client: Any = None) -> None:
        self._options = options
        self._client = _client(address) if client is None else client

    def start(self, folder: Path) -> None:
        submission = f"supernet-{folder.name}-{time.time_ns()}"
        write_files({SUBMISSION: submission}, folder)
        self._client.submit_job(
            entrypoint=shlex.join(self._options.command(folder)),
            submission_id=submission,
            runtime_env={"env_vars": self._options.environment},
            entrypoint_num_cpus=self._options.threads,
        )

    def is_alive(self, folder: Path) -> bool:
        submission = self._submission(folder)
        if submission is None:
            return False
        try:
            return str(self._client.get_job_status(submission).value) in self.RUNS
        except RuntimeError as error:
            if "does not exist" in str(error):  # it was lost before it was submitted, or with its cluster
                return False
            raise

    def stop(self, folder: Path) -> None:
        if (submission := self._submission(folder)) is None or not self.is_alive(folder):
            return
        self._client.stop_job(submission)
        until = time.monotonic() + STOPPED_WITHIN
        while self.is_alive(folder):
            if time.monotonic() > until:
                raise RuntimeError(f"the Ray Job {submission} does not end")
            time.sleep(0.1)

    def _submission(self, folder: Path) -> str | None:
        try:
            return (folder / SUBMISSION).read_text()
        except FileNotFoundError:
            return None


def _client(address: str) -> Any:
    from ray.exceptions import RayError

    try:
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(None if address == "auto" else address)
    except (ImportError, RuntimeError) as error:  # of Ray without its dashboard
        raise ModuleNotFoundError(f"Ray Jobs need Ray's dashboard: pip install 'ray[default]' ({error})") from error
    except ConnectionError as error:
        raise ValueError(f"there is no Ray cluster at {address!r}: start one with ray start --head") from error
    except RayError as error:  # of a cluster that asks for a token
        raise ValueError(f"the Ray cluster at {address!r} refuses: {first_line(error)}; see RAY_AUTH_TOKEN") from error


def _is_locked(folder: Path) -> bool:
    if not (folder / LOCK).exists():
        return False
    if (handle := held(folder)) is None:
        return True
    os.close(handle)
    return False


def _worker_of(folder: Path) -> int | None:
    """The number of the worker's process and group; None in the moment before it is written."""
    text = (folder / LOCK).read_text()
    return int(text) if text.isdigit() else None


def _runs(process: int) -> bool:
    """Whether there is such a process that has not ended; one whose parent has not asked for its end has, too."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
