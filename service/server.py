"""A server on its folder: put together, and run until it is told to end."""

from __future__ import annotations

import logging
import secrets
import socket
from pathlib import Path

from service.app import Settings, make_app
from service.backends import Backend
from service.dispatcher import Dispatcher
from service.feasibility import Check, check_reachable
from service.observability import JsonLines
from service.store import Store
from supernet.imports import require


def serve(
    settings: Settings,
    backend: Backend,
    listening: socket.socket,
    slots: int,
    least_free_bytes: int = 0,
    check: Check = check_reachable,
) -> None:
    """Serve jobs on the socket until the process is told to end; its jobs go on, and are found again by the next."""
    uvicorn = require("uvicorn")
    settings.jobs.mkdir(parents=True, exist_ok=True)
    settings.devices.mkdir(parents=True, exist_ok=True)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    store = Store(settings.data / "jobs.sqlite")
    dispatcher = Dispatcher(store, settings.jobs, backend, slots, least_free_bytes)
    app = make_app(settings, dispatcher, check)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=10, lifespan="on")
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        store.close()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that who reads the address may call at once; ValueError if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise ValueError(f"{host}:{port} cannot be listened on: {error.strerror}; name another --port") from error
    return listening


def token_of(path: Path) -> str:
    """The token in the file at `path`, which is made, for its owner's eyes alone, where there is none."""
    if not (path.exists() and path.read_text().strip()):  # it is empty where a server was lost as it made it
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(24))
    return path.read_text().strip()
