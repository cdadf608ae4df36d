"""Which jobs run: starts a worker for each that is queued, as many at once as there are slots, and watches them.

All that it knows is in the store and in the folders of the jobs. Started anew after a crash it finds the workers that
still run, and gives those that were lost a new one, which goes on where they stopped.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from pathlib import Path

from service.backends import Backend
from service.progress import DONE, FAILED, RUNNING, WAITING, Progress
from service.store import CANCELLED, DELETING, QUEUED, UNFINISHED, UPLOADING, JobRow, Store

logger = logging.getLogger(__name__)

POLL = 0.2  # seconds between two looks
MOST_DEATHS = 5  # workers that a job may lose within one stage
ABANDONED = 24 * 3600.0  # seconds after which a job whose images never came is deleted


class Dispatcher:
    """`start` runs it in a thread; `look` is one round, for tests."""

    def __init__(self, store: Store, jobs: Path, backend: Backend, slots: int, least_free_bytes: int = 0) -> None:
        self.store, self.jobs, self.slots = store, jobs, slots
        self.lost_workers = 0
        self.looked = time.monotonic()
        self._backend, self._least_free_bytes = backend, least_free_bytes
        self._stages: dict[str, int] = {}  # ended ones of each job that runs
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._lock = threading.RLock()  # between a look and what somebody asks for meanwhile

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; workers go on."""
        self._ending.set()
        self._thread.join()

    def look(self) -> None:
        """Take note of what workers have done, and start others where there is room."""
        with self._lock:
            for row in self.store.listed((RUNNING,)):
                self._watch(row)
            for row in self.store.listed((DELETING,)):
                self._remove(row.id)
            for row in self.store.listed((UPLOADING,)):
                if time.time() - row.updated > ABANDONED:
                    self.delete(row.id)
            running = len(self.store.listed((RUNNING,)))
            if running < self.slots and self.has_room:
                for row in self.store.listed((QUEUED,), limit=self.slots - running):
                    self._begin(row)
            self.looked = time.monotonic()

    @property
    def has_room(self) -> bool:
        """Whether the disk has the bytes free that jobs are not started without."""
        return shutil.disk_usage(self.jobs).free >= self._least_free_bytes

    def cancel(self, job: str) -> bool:
        """End the job and keep what it has; whether there was anything to end."""
        with self._lock:
            self._backend.stop(self.jobs / job)
            return self.store.move(job, UNFINISHED, CANCELLED)

    def resume(self, job: str) -> bool:
        """Let a job go on that failed or was cancelled; whether it was such a job."""
        with self._lock:
            is_complete = (self.jobs / job / "job.json").exists()
            return is_complete and self.store.move(job, (FAILED, CANCELLED), QUEUED)

    def delete(self, job: str) -> None:
        """Remove all of a job. It is gone for good after a crash, too."""
        with self._lock:
            self.store.move(job, (*UNFINISHED, DONE, FAILED, CANCELLED), DELETING)
            self._remove(job)

    def _remove(self, job: str) -> None:
        self._backend.stop(self.jobs / job)
        shutil.rmtree(self.jobs / job, ignore_errors=True)
        if (self.jobs / job).exists():
            logger.error("the folder of a job cannot be removed", extra={"job": job})
            return
        self.store.remove(job)

    def _run(self) -> None:
        while not self._ending.wait(POLL):
            try:
                self.look()
            except Exception:  # a disk that is full for a while, say: the next look may do better
                logger.exception("the dispatcher could not look after the jobs")

    def _begin(self, row: JobRow) -> None:
        if not (self.jobs / row.id).exists():
            self.store.move(row.id, (QUEUED,), FAILED, "its folder is gone: delete the job and submit it anew")
            return
        if not self.store.move(row.id, (QUEUED,), RUNNING):
            return
        try:
            self._backend.start(self.jobs / row.id)
        except (OSError, RuntimeError) as error:
            logger.error("a worker cannot be started: %s", error, extra={"job": row.id})
            self.store.move(row.id, (RUNNING,), QUEUED, f"no worker could be started: {error}")
            return
        logger.info("job started", extra={"job": row.id})

    def _watch(self, row: JobRow) -> None:
        """Move a running job on by what its worker has written, or give it a new worker if the last one was lost."""
        folder = self.jobs / row.id
        is_alive = self._backend.is_alive(folder)  # before its progress is read, which then is the last
        progress = _read(folder)
        ended = sum(stage.state != RUNNING for stage in progress.stages)
        deaths = 0 if ended > self._stages.get(row.id, ended) else row.deaths
        self._stages[row.id] = ended
        if not is_alive and progress.state in (DONE, FAILED, WAITING):
            self._finish(row, progress)
            return
        if not is_alive:
            deaths += 1
            self.lost_workers += 1
            if deaths >= MOST_DEATHS:
                message = f"{deaths} workers were lost in the stage {progress.stage or 'before the first'}"
                self.store.move(row.id, (RUNNING,), FAILED, f"{message}: look at the log, memory may be too small")
            else:
                self.store.move(row.id, (RUNNING,), QUEUED)
            logger.warning("worker lost", extra={"job": row.id, "deaths": deaths})
        if (progress.stage, deaths) != (row.stage, row.deaths):
            self.store.note(row.id, progress.stage, deaths)

    def _finish(self, row: JobRow, progress: Progress) -> None:
        self._stages.pop(row.id, None)
        self.store.note(row.id, progress.stage, 0)
        if progress.state == WAITING and (self.jobs / row.id / progress.message.removeprefix("waits for ")).exists():
            self.store.move(row.id, (RUNNING,), QUEUED)  # it came in the meantime
        else:
            self.store.move(row.id, (RUNNING,), progress.state, progress.message)
        logger.info("job ended", extra={"job": row.id, "state": progress.state})


def _read(folder: Path) -> Progress:
    try:
        return Progress.load(folder)
    except ValueError:
        return Progress()
