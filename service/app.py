"""The server: takes jobs in, hands out what they made, and runs nothing of what it is given.

    POST   /jobs                    a request as JSON (`service.request`); its images follow unless they have a path
    PUT    /jobs/ID/weights         the model's weights, safetensors
    PUT    /jobs/ID/images          a zip, upon which the job is checked and queued
    PUT    /jobs/ID/measurements    the CSV of a device of one's own
    GET    /jobs, /jobs/ID          states; /jobs/ID/log, /jobs/ID/proof, /jobs/ID/files, /jobs/ID/files/PATH
    POST   /jobs/ID/cancel, /jobs/ID/resume
    DELETE /jobs/ID, /jobs/ID/images
    GET    /devices, /metrics, /health, /

Uploads are the bodies of their requests as they are, and are counted while they come. All but the page and /health ask
for the token. An error is {"error": a line that names the value and the remedy}.
"""

from __future__ import annotations

import errno
import hmac
import io
import logging
import shutil
import time
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from service.archive import UploadLimits
from service.dispatcher import POLL, Dispatcher
from service.feasibility import Check, check_reachable, known_devices
from service.intake import Intake, Refused
from service.observability import Requests, prometheus
from service.progress import DONE, FAILED, LOG, WAITING, Progress
from service.proof import proof
from service.request import HERE
from service.stages import MEASUREMENTS, SEARCHED, TO_MEASURE
from service.store import CANCELLED, UPLOADING, JobRow, Store

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).parent / "assets"
HANDED_OUT = ("subnet", "tuned", "int8", "baseline", SEARCHED, "latency", TO_MEASURE)  # folders of a job
LOG_BYTES = 2**18  # of a log in one answer
REQUEST_BYTES = 2**16
STALE = 100 * POLL  # seconds without a look after which the dispatcher is no longer healthy
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-src 'self'; base-uri 'none'"
)
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)


@dataclass(frozen=True)
class Settings:
    """What the server may do, and where."""

    data: Path
    """Folder of the jobs, the database and the devices' predictors."""
    token: str
    """That every request has to bear."""
    roots: tuple[Path, ...] = ()
    """Folders of this machine beneath which jobs may name images."""
    limits: UploadLimits = field(default_factory=UploadLimits)
    most_jobs: int = 1000
    """Jobs that are not at their end."""
    offline: bool = False
    """Nothing is asked for from anywhere, weights of models neither."""

    @property
    def jobs(self) -> Path:
        return self.data / "jobs"

    @property
    def devices(self) -> Path:
        return self.data / "devices"


def make_app(
    settings: Settings,
    dispatcher: Dispatcher,
    check: Check = check_reachable,
    *,
    watch: bool = True,
) -> FastAPI:
    """The server over a dispatcher, whose thread it starts if it is to `watch`. `check` refuses plans that cannot be
    met, as `service.feasibility.check_reachable` does."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if watch:
            dispatcher.start()
        yield
        if watch:
            dispatcher.stop()

    app = FastAPI(title="supernet", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    requests, intake = Requests(), Intake(settings, dispatcher, check)
    store: Store = dispatcher.store

    @app.middleware("http")
    async def answered(request: Request, call_next: Callable[..., Any]) -> Response:
        begun = time.monotonic()
        response = await call_next(request)
        requests.note(request.method, response.status_code)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers.setdefault("Content-Security-Policy", POLICY)
        response.headers.setdefault("Cache-Control", "no-store")
        told = {"method": request.method, "path": request.url.path, "status": response.status_code}
        logger.info("answered", extra=told | {"milliseconds": round(1000 * (time.monotonic() - begun), 1)})
        return response

    def authorised(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), settings.token.encode()):
            raise Refused(401, "the token is missing or wrong: send Authorization: Bearer TOKEN, as the server said it")

    def job_of(job: str) -> JobRow:
        row = store.get(job)
        if row is None:
            raise Refused(404, f"there is no job {job[:40]!r}")
        return row

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return JSONResponse({"error": str(error)}, error.status)

    @app.exception_handler(ValueError)
    async def invalid(request: Request, error: ValueError) -> Response:
        return JSONResponse({"error": str(error)}, 422)

    @app.exception_handler(RequestValidationError)
    async def no_number(request: Request, error: RequestValidationError) -> Response:
        return JSONResponse({"error": "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())}, 422)

    @app.exception_handler(ModuleNotFoundError)
    async def not_installed(request: Request, error: ModuleNotFoundError) -> Response:
        return JSONResponse({"error": str(error)}, 501)

    @app.exception_handler(OSError)
    async def failed(request: Request, error: OSError) -> Response:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "full" in str(error):
            return JSONResponse({"error": "the server's disk is full: delete jobs, or try later"}, 507)
        logger.error("failed: %s", error)
        return JSONResponse({"error": "the server could not read or write what it has to; its log says more"}, 500)

    @app.get("/")
    async def page() -> Response:
        return FileResponse(ASSETS / "page.html")

    @app.get("/page.{kind}")
    async def asset(kind: str) -> Response:
        if kind not in ("js", "css"):
            raise Refused(404, "there is no such page")
        return FileResponse(ASSETS / f"page.{kind}")

    @app.get("/health")
    def health() -> Response:
        is_watching = not watch or time.monotonic() - dispatcher.looked < STALE
        told = {"dispatcher": is_watching, "disk": dispatcher.has_room}
        return JSONResponse({"ok": all(told.values()), **told}, 200 if all(told.values()) else 503)

    guarded: dict[str, Any] = {"dependencies": [Depends(authorised)]}

    @app.get("/metrics", **guarded)
    def metrics() -> Response:
        return PlainTextResponse(prometheus(dispatcher, requests), media_type="text/plain; version=0.0.4")

    @app.get("/devices", **guarded)
    def devices() -> dict[str, Any]:
        return {"devices": [HERE, *known_devices(settings.devices)], "offline": settings.offline}

    @app.get("/jobs", **guarded)
    def jobs() -> dict[str, Any]:
        return {"jobs": [told_of(row) for row in store.listed(newest=True)]}

    @app.post("/jobs", status_code=201, **guarded)
    async def submit(request: Request) -> dict[str, Any]:
        job = await intake.submit(await intake.read_json(request, REQUEST_BYTES))
        return told_of(job_of(job))

    @app.put("/jobs/{job}/weights", **guarded)
    async def weights(job: str, request: Request) -> dict[str, Any]:
        await intake.weights(job_of(job), request)
        return told_of(job_of(job))

    @app.put("/jobs/{job}/images", **guarded)
    async def images(job: str, request: Request) -> dict[str, Any]:
        await intake.images(job_of(job), request)
        return told_of(job_of(job))

    @app.put("/jobs/{job}/measurements", **guarded)
    async def measurements(job: str, request: Request) -> dict[str, Any]:
        await intake.measurements(job_of(job), request)
        return told_of(job_of(job))

    @app.get("/jobs/{job}", **guarded)
    def one(job: str) -> dict[str, Any]:
        row = job_of(job)
        progress = Progress.load(settings.jobs / row.id)
        stages = [vars(stage) for stage in progress.stages]
        report = f"jobs/{row.id}/report/{ticket(settings.token, row.id)}"
        return told_of(row) | {"stages": stages, "seconds": progress.seconds, "report": report}

    @app.get("/jobs/{job}/log", **guarded)
    def log(job: str, start: int = 0) -> Response:
        path, start = settings.jobs / job_of(job).id / LOG, min(max(0, start), 2**62)
        content = b""
        if path.exists():
            with path.open("rb") as file:
                file.seek(start)
                content = file.read(LOG_BYTES)
        return PlainTextResponse(content, headers={"X-Next": str(start + len(content))})

    @app.get("/jobs/{job}/proof", **guarded)
    def proven(job: str) -> dict[str, Any]:
        return proof(settings.jobs / job_of(job).id)

    @app.get("/jobs/{job}/files", **guarded)
    def files(job: str) -> dict[str, Any]:
        folder = settings.jobs / job_of(job).id
        return {"files": [{"path": name, "bytes": (folder / name).stat().st_size} for name in _results(folder)]}

    @app.get("/jobs/{job}/files/{path:path}", **guarded)
    def file(job: str, path: str) -> Response:
        folder = settings.jobs / job_of(job).id
        if path not in _results(folder):
            raise Refused(404, f"the job has no file {path[:100]!r}")
        headers = {"Content-Security-Policy": "sandbox; default-src 'none'"}
        return FileResponse(folder / path, filename=Path(path).name, headers=headers)

    @app.get("/jobs/{job}/report/{given}")
    def report(job: str, given: str) -> Response:
        """For a frame, which cannot send the token; its scripts run in a sandbox, without the page's rights."""
        if not hmac.compare_digest(given.encode(), ticket(settings.token, job).encode()):
            raise Refused(401, "this address of a report is not of this server: open the job's page")
        path = settings.jobs / job_of(job).id / SEARCHED / "report.html"
        if not path.exists():
            raise Refused(404, "the job has no report")
        return FileResponse(path, headers={"Content-Security-Policy": REPORT_POLICY})

    @app.get("/jobs/{job}/archive/{part}", **guarded)
    def archive(job: str, part: str) -> Response:
        folder = settings.jobs / job_of(job).id
        names = [name for name in _results(folder) if part in HANDED_OUT and name.startswith(f"{part}/")]
        if not names:
            raise Refused(404, f"the job has nothing called {part[:40]!r}")
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as file:
            for name in names:
                file.write(folder / name, name)
        headers = {"Content-Disposition": f'attachment; filename="{part}.zip"'}
        return Response(packed.getvalue(), media_type="application/zip", headers=headers)

    @app.post("/jobs/{job}/cancel", **guarded)
    def cancel(job: str) -> dict[str, Any]:
        if not dispatcher.cancel(job_of(job).id):
            raise Refused(409, "the job has ended already")
        return told_of(job_of(job))

    @app.post("/jobs/{job}/resume", **guarded)
    def resume(job: str) -> dict[str, Any]:
        if not dispatcher.resume(job_of(job).id):
            raise Refused(409, "a job goes on if it failed or was cancelled after its images had come")
        return told_of(job_of(job))

    @app.delete("/jobs/{job}", status_code=204, **guarded)
    def delete(job: str) -> Response:
        dispatcher.delete(job_of(job).id)
        return Response(status_code=204)

    @app.delete("/jobs/{job}/images", status_code=204, **guarded)
    def delete_images(job: str) -> Response:
        row = job_of(job)
        if row.state not in (DONE, FAILED, CANCELLED):
            raise Refused(409, "the job still needs its images: cancel it first")
        shutil.rmtree(settings.jobs / row.id / "images", ignore_errors=True)
        return Response(status_code=204)

    return app


def ticket(token: str, job: str) -> str:
    """What opens the report of one job, and nothing else."""
    return hmac.new(token.encode(), f"report of {job}".encode(), "sha256").hexdigest()


def told_of(row: JobRow) -> dict[str, Any]:
    """What the page knows of a job."""
    waits = {UPLOADING: "PUT its images", WAITING: f"PUT {MEASUREMENTS}"}
    return {
        "id": row.id,
        "name": row.request.name,
        "request": row.request.to_json(),
        "state": row.state,
        "stage": row.stage,
        "message": row.message,
        "next": waits.get(row.state, ""),
        "created": row.created,
    }


def _results(folder: Path) -> list[str]:
    """Files that a job hands out, by their places in its folder."""
    found = []
    for part in HANDED_OUT:
        for path in sorted((folder / part).rglob("*")):
            name = path.relative_to(folder)
            is_hidden = any(piece.startswith(".") for piece in name.parts)
            if path.is_file() and not path.is_symlink() and not is_hidden and "checkpoints" not in name.parts:
                found.append(name.as_posix())
    return found
