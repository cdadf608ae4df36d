"""Serve compression over HTTP: images and a device's limits in, a subnet with its proof out.

    supernet serve --data-dir service
    supernet serve --data-dir service --slots 2 --images-beneath /data/images --offline
    supernet serve --data-dir /shared/service --ray auto --slots 16 --threads 4

Prints an address with a token in it, at which a page takes jobs in and shows them. A job's commands run in a folder of
its own, DATA_DIR/jobs/ID, each job in a worker process, so many at a time as there are slots; jobs outlive the server,
which goes on with them when it is started again. Predictors in DATA_DIR/devices/NAME, as supernet measure-latency
writes them, are devices to choose. Listens on this machine alone; what listens elsewhere (--host) belongs behind a
proxy with TLS, as the token and the images are sent as they are. Needs the extra `service`. With --ray workers are Ray
Jobs of a cluster, whose machines find DATA_DIR under the same path. Every event is a line of JSON on standard error.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from service.archive import UploadLimits
from supernet.artifacts.ownership import owned
from supernet.imports import require
from supernet_cli.command_line import console
from supernet_cli.flags import parse_flags

TOKEN = "SUPERNET_TOKEN"  # environment variable


@dataclass(frozen=True)
class Arguments:
    data_dir: Path = Path("service")
    """Folder for jobs, their states, and the devices' predictors."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on; 0 for any that is free."""
    slots: int = 1
    """Jobs that run at once."""
    threads: int = 1
    """CPU threads of each job."""
    images_beneath: tuple[Path, ...] = ()
    """Folders beneath which a job may name images on this machine; by default images are uploaded."""
    offline: bool = False
    """Ask for nothing from anywhere: published weights are refused."""
    ray: str | None = None
    """Ray cluster whose Ray Jobs run the workers: auto, or its dashboard's address; by default this machine runs
    them."""
    limits: Annotated[UploadLimits, tyro.conf.arg(name="most")] = field(default_factory=UploadLimits)
    most_jobs: int = 1000
    """Jobs that may be unfinished at once."""
    least_free_bytes: int = 2**30
    """Free bytes of the disk below which no job is taken in or started."""

    def __post_init__(self) -> None:
        for name in ("slots", "threads", "most_jobs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")


def main() -> None:
    arguments = parse_flags(Arguments, __doc__)
    require("fastapi")
    require("uvicorn")

    from service.app import Settings
    from service.backends import LocalBackend, RayBackend, WorkerOptions
    from service.server import listen, serve, token_of

    data = arguments.data_dir.resolve()
    with owned(data):
        token = os.environ.get(TOKEN) or token_of(data / "token")
        settings = Settings(
            data, token, arguments.images_beneath, arguments.limits, arguments.most_jobs, arguments.offline
        )
        options = WorkerOptions(settings.devices, arguments.threads, arguments.offline)
        backend = LocalBackend(options) if arguments.ray is None else RayBackend(options, arguments.ray)
        with listen(arguments.host, arguments.port) as listening:
            host, port = listening.getsockname()[:2]
            console.print(f"Open http://{host}:{port}/#token={token} in a browser.", highlight=False, soft_wrap=True)
            serve(settings, backend, listening, arguments.slots, arguments.least_free_bytes)
