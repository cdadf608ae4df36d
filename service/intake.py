"""How jobs and uploads come in: counted, checked, and written whole or not at all."""

from __future__ import annotations

import dataclasses
import errno
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from service.archive import ImageFacts, facts_of_folder, unpack
from service.dispatcher import Dispatcher
from service.feasibility import Check
from service.plan import IMAGES, UPLOADED_WEIGHTS, Plan, make_plan
from service.progress import RUNNING, WAITING
from service.request import JobRequest
from service.stages import MEASUREMENTS, SUGGESTED, TO_MEASURE
from service.store import QUEUED, UNFINISHED, UPLOADING, JobRow
from supernet.artifacts.reading import parse_json, read_rows

if TYPE_CHECKING:
    from service.app import Settings

UNPACKING = 2  # archives at once


class Refused(Exception):
    """What was asked for is not done; `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Intake:
    """Takes in what customers send."""

    def __init__(self, settings: Settings, dispatcher: Dispatcher, check: Check) -> None:
        self._settings, self._dispatcher, self._check = settings, dispatcher, check
        self._store = dispatcher.store
        self._unpacking = threading.Semaphore(UNPACKING)
        self._busy: set[str] = set()  # jobs into which something is being written

    async def submit(self, values: object) -> str:
        """The id of a new job. One with a path is checked and queued at once."""
        return await run_in_threadpool(self._submit, JobRequest.from_json(values))

    async def weights(self, row: JobRow, request: Request) -> None:
        self._expect(row, UPLOADING, "its weights come before its images")
        if row.request.weights != "uploaded":
            raise Refused(409, "the job was asked for without weights of its own: say weights uploaded")
        with self._alone(row.id):
            target = self._folder(row) / UPLOADED_WEIGHTS
            with self._received(row) as file:
                await self._receive(request, file, self._settings.limits.upload_bytes)
                await run_in_threadpool(_check_safetensors, file)
                file.replace(target)
            if row.request.path is not None:
                await run_in_threadpool(self._complete, row)

    async def images(self, row: JobRow, request: Request) -> None:
        self._expect(row, UPLOADING, "its images have come already")
        if row.request.path is not None:
            raise Refused(409, "the job has images at a path: submit another job without one")
        if row.request.weights == "uploaded" and not (self._folder(row) / UPLOADED_WEIGHTS).exists():
            raise Refused(409, "PUT the weights first")
        with self._alone(row.id), self._received(row) as file:
            await self._receive(request, file, self._settings.limits.upload_bytes)
            await run_in_threadpool(self._complete, row, file)

    async def measurements(self, row: JobRow, request: Request) -> None:
        if not row.request.is_measured_elsewhere:
            raise Refused(409, "the job's device is not one of the customer's own")
        if row.state not in (WAITING, RUNNING, QUEUED):
            raise Refused(409, f"the job is {row.state} and waits for no measurements")
        with self._alone(row.id), self._received(row) as file:
            await self._receive(request, file, self._settings.limits.measurements_bytes)
            await run_in_threadpool(_check_measurements, file, self._folder(row) / TO_MEASURE / "manifest.csv")
            file.replace(self._folder(row) / MEASUREMENTS)
        self._store.move(row.id, (WAITING,), QUEUED)

    async def read_json(self, request: Request, limit: int) -> object:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise Refused(413, f"a request is at most {limit} bytes of JSON")
        try:
            return parse_json(body, object)
        except ValueError as error:
            raise Refused(400, f"the request is no JSON: {error}") from error

    def _submit(self, request: JobRequest) -> str:
        if not self._dispatcher.has_room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if sum(self._store.counts()[state] for state in UNFINISHED) >= self._settings.most_jobs:
            raise Refused(429, f"there are {self._settings.most_jobs} unfinished jobs: try later")
        if self._settings.offline and request.weights == "published":
            raise ValueError("this server is offline: upload the weights, or train without")
        if request.path is not None:
            self._check_path(request.path)
        job = secrets.token_hex(6)
        folder = self._settings.jobs / job
        folder.mkdir()
        try:
            if request.path is None or request.weights == "uploaded":
                self._store.add(job, request, UPLOADING)
                return job
            self._plan(request, facts_of_folder(Path(request.path), self._settings.limits)).save(folder)
            self._store.add(job, request, QUEUED)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return job

    def _complete(self, row: JobRow, archive: Path | None = None) -> None:
        """Queue a job whose images are here; of an archive that is refused nothing is left."""
        folder, limits = self._folder(row), self._settings.limits
        for left in folder.glob(".unpacked*"):  # by a server that was lost just then
            shutil.rmtree(left, ignore_errors=True)
        with self._unpacking, tempfile.TemporaryDirectory(prefix=".unpacked", dir=folder) as unpacked:
            if archive is None:
                facts = facts_of_folder(Path(row.request.path or ""), limits)
            else:
                facts = unpack(archive, Path(unpacked), limits, row.request.seed)
            plan = self._plan(row.request, facts)
            if archive is not None:
                shutil.rmtree(folder / IMAGES, ignore_errors=True)
                images = folder / IMAGES
                images.mkdir()
                for part in sorted(Path(unpacked).iterdir()):
                    part.rename(images / part.name)
        plan.save(folder)
        self._store.move(row.id, (UPLOADING,), QUEUED)

    def _plan(self, request: JobRequest, facts: ImageFacts) -> Plan:
        """ValueError for what cannot be met."""
        if request.model:
            _check_model(request.model)
        plan = make_plan(request, facts)
        return dataclasses.replace(plan, sources=self._check(plan, self._settings.devices))

    def _check_path(self, path: str) -> None:
        real = Path(path).resolve()
        if not any(real.is_relative_to(root.resolve()) for root in self._settings.roots):
            raise Refused(403, "the path is not beneath a folder that the server may read: upload a zip")
        if not real.is_dir():
            raise ValueError(f"there is no folder {path!r} on the server")

    def _folder(self, row: JobRow) -> Path:
        return self._settings.jobs / row.id

    def _expect(self, row: JobRow, state: str, otherwise: str) -> None:
        if row.state != state:
            raise Refused(409, f"the job is {row.state}: {otherwise}")

    @contextmanager
    def _alone(self, job: str) -> Iterator[None]:
        """One upload into a job at a time."""
        if job in self._busy:
            raise Refused(409, "an upload into this job is under way")
        self._busy.add(job)
        try:
            yield
        finally:
            self._busy.discard(job)

    @contextmanager
    def _received(self, row: JobRow) -> Iterator[Path]:
        """A file in the job's folder to receive into, which is gone afterwards unless it was moved."""
        file = self._folder(row) / ".received"
        try:
            yield file
        finally:
            file.unlink(missing_ok=True)

    async def _receive(self, request: Request, file: Path, limit: int) -> None:
        """Write the body of a request; Refused as soon as it is longer than it may be."""
        told = request.headers.get("content-length", "")
        too_long = Refused(413, f"an upload here has at most {limit} bytes: make it smaller")
        if told.isdigit() and int(told) > limit:
            raise too_long
        written = 0
        with file.open("wb") as target:
            async for chunk in request.stream():
                written += len(chunk)
                if written > limit:
                    raise too_long
                await run_in_threadpool(target.write, chunk)
        if not written:
            raise Refused(400, "the upload is empty")


def _check_model(name: str) -> None:
    import timm

    if not timm.is_model(name):
        close = timm.list_models(f"*{name.partition('.')[0][:8]}*")[:5]
        near = f"; there are {', '.join(close)}" if close else ""
        raise ValueError(f"timm has no model {name!r}{near}")


def _check_safetensors(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as tensors:
            names = list(tensors.keys())
    except SafetensorError as error:
        raise ValueError(
            f"the weights are no safetensors: {error}; save them by safetensors.torch.save_file"
        ) from error
    if not names:
        raise ValueError("the weights have no tensors")


def _check_measurements(file: Path, manifest: Path) -> None:
    """ValueError unless the file has a latency of each network that was handed out, and of no other."""
    from predictors.measuring.measurements import read_measurements
    from supernet.space import Arch

    if not manifest.exists():
        raise Refused(409, "the networks to measure are not there yet")
    asked = {Arch.from_json(row["arch"]) for row in read_rows(manifest, ["arch"])}
    try:
        text = file.read_text()
    except UnicodeDecodeError as error:
        raise ValueError("the measurements are no text: send the CSV with the columns arch and latency_ms") from error
    if not text.endswith("\n"):
        file.write_text(text + "\n")  # read_measurements passes over a line without its end
    try:
        rows = read_measurements(file)
    except ValueError as error:
        raise ValueError(str(error).replace(str(file), MEASUREMENTS)) from error
    found = {row.arch for row in rows if not row.error}
    if missing := len(asked - found):
        raise ValueError(
            f"{missing} of the {SUGGESTED} networks have no latency_ms: fill in every line of the manifest"
        )
    if found - asked:
        raise ValueError("there are measurements of networks that were not handed out: leave them out")
