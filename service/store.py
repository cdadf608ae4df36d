"""The states of all jobs, in SQLite: what a server that is started again goes on from.

The server alone writes here. A change of state names the states from which it may come, so that of two requests at once
one wins and the other is told.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from service.progress import DONE, FAILED, RUNNING, WAITING
from service.request import JobRequest
from supernet.artifacts.reading import parse_json

UPLOADING, QUEUED, CANCELLED, DELETING = "uploading", "queued", "cancelled", "deleting"
STATES = (UPLOADING, QUEUED, RUNNING, WAITING, DONE, FAILED, CANCELLED, DELETING)
UNFINISHED = (UPLOADING, QUEUED, RUNNING, WAITING)
SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY,
    request TEXT NOT NULL,
    state TEXT NOT NULL,
    stage TEXT NOT NULL DEFAULT '',
    message TEXT NOT NULL DEFAULT '',
    created REAL NOT NULL,
    updated REAL NOT NULL,
    deaths INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS by_state ON jobs (state, created);
"""
FIELDS = "id, request, state, stage, message, created, updated, deaths"


@dataclass(frozen=True)
class JobRow:
    """A job as the server knows it."""

    id: str
    request: JobRequest
    state: str
    stage: str
    """That its worker began last."""
    message: str
    """Why it failed, or what it waits for."""
    created: float
    """Seconds since 1970, as is `updated`."""
    updated: float
    deaths: int
    """Workers that it lost since a stage ended last."""


class Store:
    """The database file at `path`, from any thread."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False, timeout=30, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")  # a job that was accepted outlives a loss of power
        self._connection.executescript(SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def add(self, job: str, request: JobRequest, state: str) -> None:
        now = time.time()
        said = json.dumps(request.to_json())
        self._write("INSERT INTO jobs VALUES (?, ?, ?, '', '', ?, ?, 0)", (job, said, state, now, now))

    def get(self, job: str) -> JobRow | None:
        rows = self._read(f"SELECT {FIELDS} FROM jobs WHERE id = ?", (job,))
        return rows[0] if rows else None

    def listed(self, states: Sequence[str] = STATES, limit: int = 1000, *, newest: bool = False) -> list[JobRow]:
        """The jobs in these states, the oldest first, or the newest."""
        marks, order = ", ".join("?" * len(states)), "DESC" if newest else "ASC"
        query = f"SELECT {FIELDS} FROM jobs WHERE state IN ({marks}) ORDER BY created {order}, id LIMIT ?"
        return self._read(query, (*states, limit))

    def counts(self) -> dict[str, int]:
        """Jobs by state."""
        with self._lock:
            found = dict(self._connection.execute("SELECT state, COUNT(*) FROM jobs GROUP BY state"))
        return {state: found.get(state, 0) for state in STATES}

    def move(self, job: str, sources: Sequence[str], state: str, message: str = "") -> bool:
        """Put the job into `state` if it is in one of `sources`; whether it was."""
        marks = ", ".join("?" * len(sources))
        query = f"UPDATE jobs SET state = ?, message = ?, updated = ? WHERE id = ? AND state IN ({marks})"
        return self._write(query, (state, message, time.time(), job, *sources)) == 1

    def note(self, job: str, stage: str, deaths: int) -> None:
        """Keep how far the job is."""
        self._write(
            "UPDATE jobs SET stage = ?, deaths = ?, updated = ? WHERE id = ?", (stage, deaths, time.time(), job)
        )

    def remove(self, job: str) -> None:
        self._write("DELETE FROM jobs WHERE id = ?", (job,))

    def _read(self, query: str, values: Sequence[object]) -> list[JobRow]:
        with self._lock:
            rows = self._connection.execute(query, values).fetchall()
        return [JobRow(row[0], parse_json(row[1], JobRequest), *row[2:]) for row in rows]

    def _write(self, query: str, values: Sequence[object]) -> int:
        """Rows that changed; OSError where the disk is full."""
        with self._lock:
            try:
                return self._connection.execute(query, values).rowcount
            except sqlite3.OperationalError as error:
                raise OSError(f"the state of the job could not be kept: {error}") from error
