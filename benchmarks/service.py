"""Whether the service loses a job under load, while its workers are killed: on any machine.

    python benchmarks/service.py [--quick] [--json FILE]

Clients submit jobs, each with a zip of 600 images, and ask after them, all at once, to a server on 127.0.0.1 in a
process of its own. The jobs' commands are stand-ins that write what the true ones would in a tenth of a second
(tests/service/stand_in.py), so that what is measured is the service. Every so often a worker is killed (signal 9).
`lost_jobs` are those that were accepted and did not end as done, and `repeated_commands` those that were begun more
often than once for each job, which are at most one a kill. A worker that is killed when it has written its end needs
none in its place, so that `replaced_workers` may be fewer than `killed_workers`. Seconds are those of a request,
uploads and unpacking included. Two minutes on 2 cores.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from report import report

from service.app import Settings
from service.backends import LocalBackend, WorkerOptions
from service.server import serve

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "benchmark"
SERVE = "--serve"  # before the folder, the socket and the slots: this script is then the server
JOBS_A_CLIENT, REQUESTS_A_CLIENT = 1, 10


@dataclass(frozen=True)
class Arguments:
    clients: int = 50
    """Clients at once, each with ten requests, of which two submit a job."""
    kills: int = 10
    """Workers that are killed meanwhile."""
    slots: int = 2
    """Workers at once."""
    quick: bool = False
    """Ten clients and three kills."""
    seed: int = 0
    """Which workers are killed, and when."""
    json: Path | None = None
    """File for the result."""


class Client(threading.Thread):
    """Submits jobs and asks after them; `answers` are the kind, the status and the seconds of each request."""

    def __init__(self, port: int, images: bytes) -> None:
        super().__init__()
        self.jobs: list[str] = []
        self.answers: list[tuple[str, int, float]] = []
        self._port, self._images = port, images

    def run(self) -> None:
        for _ in range(JOBS_A_CLIENT):
            job = json.loads(self._ask("submit", "POST", "/jobs", json.dumps({"minutes": 5}).encode()))["id"]
            self._ask("upload", "PUT", f"/jobs/{job}/images", self._images)
            self.jobs.append(job)
        for number in range(REQUESTS_A_CLIENT - 2 * JOBS_A_CLIENT):
            path = ("/jobs", f"/jobs/{self.jobs[0]}", f"/jobs/{self.jobs[-1]}/log")[number % 3]
            self._ask("ask", "GET", path)

    def _ask(self, kind: str, method: str, path: str, body: bytes | None = None) -> bytes:
        begun = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)
        connection.request(method, path, body, {"Authorization": f"Bearer {TOKEN}"})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        self.answers.append((kind, response.status, time.monotonic() - begun))
        return content


def main() -> None:
    if sys.argv[1:2] == [SERVE]:
        serve_here(*sys.argv[2:])
        return
    arguments = tyro.cli(Arguments, description=__doc__)
    clients, kills = (10, 3) if arguments.quick else (arguments.clients, arguments.kills)
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        data, number = Path(folder), listening.fileno()
        (data / "control").mkdir()
        (data / "control" / "slow").write_text("0.1")
        command = [sys.executable, __file__, SERVE, folder, str(number), str(arguments.slots)]
        with (data / "log").open("wb") as log:
            server = subprocess.Popen(command, stderr=log, pass_fds=(number,))
        try:
            rows, summary = measured(data, listening.getsockname()[1], clients, kills, arguments.seed)
        finally:
            server.terminate()
            server.wait()
    report(rows, summary, arguments.json, slots=arguments.slots, clients=clients)


def measured(
    data: Path, port: int, clients: int, kills: int, seed: int
) -> tuple[list[dict[str, object]], dict[str, float]]:
    images, begun = packed(), time.monotonic()
    threads = [Client(port, images) for _ in range(clients)]
    for thread in threads:
        thread.start()
    killed = kill(data / "jobs", kills, random.Random(seed))
    for thread in threads:
        thread.join()
    submitted = [job for thread in threads for job in thread.jobs]
    asker = Client(port, images)
    while True:
        states = {job["id"]: job["state"] for job in json.loads(asker._ask("ask", "GET", "/jobs"))["jobs"]}
        if not {"queued", "running", "uploading"} & set(states.values()):
            break
        time.sleep(0.5)
    seconds = time.monotonic() - begun
    answers = [answer for thread in threads for answer in thread.answers]
    started = [tuple(line.split()[:2]) for line in (data / "control" / "started").read_text().splitlines()]
    once = Counter({"train": 2, "extract": 2})  # a probe and the training, the subnet and the largest
    repeated = sum(max(0, count - max(1, once[command])) for (_, command), count in Counter(started).items())
    rows = []
    for kind in ("submit", "upload", "ask"):
        own = [answer for answer in answers if answer[0] == kind]
        median, most = np.quantile([answer[2] for answer in own], (0.5, 0.99))
        refused = sum(status >= 300 for _, status, _ in own)
        rows.append({"request": kind, "count": len(own), "refused": refused, "median (s)": median, "99 % (s)": most})
    return rows, {
        "jobs": len(submitted),
        "lost_jobs": sum(states.get(job) != "done" for job in submitted),
        "requests": len(answers),
        "refused_requests": sum(row["refused"] for row in rows),
        "killed_workers": killed,
        "replaced_workers": replaced(asker._ask("ask", "GET", "/metrics").decode()),
        "repeated_commands": repeated,
        "seconds": seconds,
    }


def replaced(metrics: str) -> int:
    """Workers that the server knows to have been lost."""
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines())
    return int(values["supernet_lost_workers_total"])


def kill(jobs: Path, count: int, generator: random.Random) -> int:
    """Kill `count` workers, each while it runs, perhaps several of one job; how many there were."""
    killed = 0
    while killed < count:
        time.sleep(generator.uniform(0.3, 1.5))
        if running := [worker for path in jobs.glob("*/.lock") if (worker := worker_of(path))]:
            os.kill(generator.choice(running), signal.SIGKILL)
            killed += 1
    return killed


def worker_of(lock: Path) -> int | None:
    """The process that runs a job, if it runs."""
    text = lock.read_text()
    try:
        command = Path(f"/proc/{text}/cmdline").read_bytes() if text.isdigit() else b""
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(text) if os.fsencode(lock.parent.resolve()) in command else None


def packed() -> bytes:
    """A zip of two classes with 300 images each."""
    image, file = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(image, "PNG")
    with zipfile.ZipFile(file, "w") as archive:
        for index in range(600):
            archive.writestr(f"{index % 2}/{index}.png", image.getvalue())
    return file.getvalue()


def serve_here(folder: str, number: str, slots: str) -> None:
    settings = Settings(Path(folder), TOKEN)
    stand_in = ROOT / "tests" / "service" / "stand_in.py"
    program = (sys.executable, "-S", "-E", str(stand_in), str(Path(folder) / "control"))
    backend = LocalBackend(WorkerOptions(settings.devices, program=program))
    with socket.socket(fileno=int(number)) as listening:
        serve(settings, backend, listening, int(slots), check=lambda plan, devices: ())


if __name__ == "__main__":
    main()
