"""The process of one job: runs its commands one after another, within the budget, and says how far it is.

    python -m service.worker JOBS/3f2a... --devices JOBS/../devices

It can be started by hand, in place of the server, and goes on where the last one stopped, however that ended. A job has
one worker at a time: the worker holds the lock of the job's folder, and so do its commands, so that the kernel alone
says whether anything of a job still runs.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from service.plan import Plan
from service.progress import DONE, FAILED, LOG, PARTIAL, RUNNING, SKIPPED, WAITING, Progress, StageRecord
from service.stages import Setting, Stage, stages_of

LOCK = ".lock"
PROGRAM = (sys.executable, "-m", "supernet_cli")  # `supernet`
LIBC, PR_SET_PDEATHSIG = ctypes.CDLL(None), 1
HEARTBEAT = 2.0  # seconds between two notes of the time that was spent
LEAST = 30.0  # seconds for a stage that the job cannot do without, even when the budget is spent
HANDED_OVER = 5.0  # seconds after which the commands of a worker that was killed have ended
GRACE = 20.0  # seconds for a command to end when it is asked to
OVERTIME = 1.5  # times its time, and a minute, before a stage that has no partial result is stopped


class Overdue(Exception):
    """A stage was stopped since its time was over."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--devices", type=Path, default=Path("devices"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--offline", action="store_true")
    parser.add_argument("--program", type=json.loads, default=PROGRAM)
    parser.add_argument("--lock", type=int)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    lock = _held_within(folder, HANDED_OVER) if arguments.lock is None else arguments.lock
    if lock is None:
        sys.exit(f"error: another worker runs the job in {folder}")
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads), "COLUMNS": "120"}
    if arguments.offline:
        environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    setting = Setting(folder, Plan.load(folder), arguments.devices.resolve(), arguments.threads)
    Worker(setting, arguments.program, environment, lock).run()


def held(folder: Path) -> int | None:
    """The lock of a job's folder, which is now held, or None if somebody else holds it."""
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _held_within(folder: Path, seconds: float) -> int | None:
    """The lock, for which those that are about to end are waited for."""
    until = time.monotonic() + seconds
    while (lock := held(folder)) is None and time.monotonic() < until:
        time.sleep(0.1)
    return lock


class Worker:
    """Runs the stages of a job."""

    def __init__(self, setting: Setting, program: Sequence[str], environment: dict[str, str], lock: int) -> None:
        self._setting, self._folder = setting, setting.folder
        self._program, self._environment, self._lock = list(program), environment, lock
        self._budget = 60 * setting.plan.request.minutes
        self.progress = Progress.load(setting.folder)

    def run(self) -> None:
        """Go on from what is done; the progress says how it ended: done, failed, or waiting for a file."""
        self.progress.state, self.progress.message = RUNNING, ""
        for stage in stages_of(self._setting.plan):
            if self.progress.is_done(stage.name):
                continue
            if stage.waits_for and not (self._folder / stage.waits_for).exists():
                self._end(WAITING, f"waits for {stage.waits_for}")
                return
            record = self.progress.of(stage.name)
            try:
                self._do(stage, record)
            except (OSError, subprocess.SubprocessError, Overdue, ValueError, LookupError) as error:
                record.note = str(error) or type(error).__name__
                record.state = FAILED if stage.needed else SKIPPED
                if stage.needed:
                    self._end(FAILED, f"{stage.name}: {record.note}")
                    return
            self.progress.save(self._folder)
        self._end(DONE, "")

    def _end(self, state: str, message: str) -> None:
        self.progress.state, self.progress.message = state, message
        self.progress.save(self._folder)

    def _do(self, stage: Stage, record: StageRecord) -> None:
        if stage.output and (self._folder / stage.output).exists():  # the worker was lost just then
            record.state = DONE
            return
        seconds = stage.until * self._budget - self.progress.seconds
        if not stage.needed and seconds < LEAST / 2:
            record.state, record.note = SKIPPED, "there was no time left in the budget"
            return
        record.state, record.note = RUNNING, ""
        self.progress.save(self._folder)
        seconds = max(seconds, LEAST)
        command = [*self._program, *map(str, stage.arguments(self._setting, seconds))]
        most = seconds if stage.partial else OVERTIME * seconds + 60
        try:
            code = self._run(command, record, most)
        except Overdue:
            if not (stage.partial and (self._folder / stage.partial).exists()):
                raise
            record.state, record.note = PARTIAL, "its time was over: the job goes on with what there is"
            return
        if code:
            raise ValueError(self._last_line() or f"it ended with exit code {code}")
        record.state = DONE

    def _run(self, command: list[str], record: StageRecord, most: float) -> int:
        """The exit code; Overdue if it took longer than `most` seconds."""
        before = record.seconds, record.core_seconds, _core_seconds()
        begun = time.monotonic()
        with (self._folder / LOG).open("ab") as log:
            log.write(f"$ {_shown(command[len(self._program) :])}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(self._lock,),
                preexec_fn=_end_with_worker,
            )
            try:
                while True:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        return process.wait(min(HEARTBEAT, max(0.01, most - (time.monotonic() - begun))))
                    record.seconds = before[0] + time.monotonic() - begun
                    self.progress.save(self._folder)
                    if time.monotonic() - begun >= most:
                        _stop(process)
                        raise Overdue(f"its time of {most:.0f} s was over: give the job more minutes")
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
                record.seconds = before[0] + time.monotonic() - begun
                record.core_seconds = before[1] + _core_seconds() - before[2]

    def _last_line(self) -> str:
        """Of the log, without the word error."""
        with (self._folder / LOG).open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - 4096))
            lines = log.read().decode(errors="replace").splitlines()
        return next((line.removeprefix("error: ") for line in reversed(lines) if line.strip()), "")


def _end_with_worker() -> None:
    """Let the kernel kill this process when the one that started it ends: prctl(PR_SET_PDEATHSIG, SIGKILL)."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)


def _core_seconds() -> float:
    """Of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _shown(arguments: Sequence[str]) -> str:
    import shlex

    return shlex.join(["supernet", *arguments])


if __name__ == "__main__":
    main()
