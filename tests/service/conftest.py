import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service.app import Settings, make_app
from service.archive import UploadLimits
from service.backends import LocalBackend, WorkerOptions
from service.dispatcher import Dispatcher
from service.store import Store

ROOT = Path(__file__).parents[2]
STAND_IN = Path(__file__).with_name("stand_in.py")
TOKEN = "a-token"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


def png(width=8, height=8, colour="red"):
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


def packed(files):
    """A zip of names and contents."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.fixture(scope="session")
def images():
    """A zip of two classes with 300 images each."""
    return packed({f"{name}/{i}.png": png(colour=name) for name in ("red", "blue") for i in range(300)})


class Service:
    """A server whose commands are stand-ins, or those of `program`, asked without a network; `look` is what its
    dispatcher does by itself."""

    def __init__(self, data, slots=1, check=lambda plan, devices: (), program=None, **settings):
        self.control = data / "control"
        self.settings = Settings(data, TOKEN, **settings)
        for folder in (self.control, self.settings.jobs, self.settings.devices):
            folder.mkdir(parents=True, exist_ok=True)
        self.store = Store(data / "jobs.sqlite")
        program = program or (sys.executable, "-S", "-E", str(STAND_IN), str(self.control))
        self.backend = LocalBackend(WorkerOptions(self.settings.devices, program=program))
        self.dispatcher = Dispatcher(self.store, self.settings.jobs, self.backend, slots)
        self.client = TestClient(make_app(self.settings, self.dispatcher, check, watch=False), headers=HEADERS)

    def submit(self, images=None, **request):
        """The id of a new job, whose images are sent if there are any."""
        response = self.client.post("/jobs", json={"minutes": 5, **request})
        assert response.status_code == 201, response.text
        job = response.json()["id"]
        if images is not None:
            response = self.client.put(f"/jobs/{job}/images", content=images)
            assert response.status_code == 200, response.text
        return job

    def state(self, job):
        return self.client.get(f"/jobs/{job}").json()

    def look_until(self, condition, seconds=30):
        until = time.monotonic() + seconds
        while True:
            self.dispatcher.look()
            if condition():
                return
            assert time.monotonic() < until, [self.state(row.id) for row in self.store.listed()]
            time.sleep(0.02)

    def ends(self, *jobs):
        self.look_until(lambda: all(self.store.get(job).state in ("done", "failed", "waiting") for job in jobs))
        return [self.store.get(job).state for job in jobs]

    def started(self):
        """Job, command and process of each command that was started."""
        path = self.control / "started"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def close(self):
        for row in self.store.listed():
            self.backend.stop(self.settings.jobs / row.id)
        for child in self.backend._children:
            child.wait()
        self.client.close()
        self.store.close()


@pytest.fixture
def make_service(tmp_path):
    made = []

    def make(**settings):
        made.append(Service(tmp_path / f"data{len(made)}", **settings))
        return made[-1]

    yield make
    for service in made:
        service.close()


@pytest.fixture
def service(make_service):
    return make_service()


SERVER = """
import socket, sys
from pathlib import Path
from service.app import Settings
from service.backends import LocalBackend, WorkerOptions
from service.server import serve
data, number, slots, program = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
settings = Settings(data, {token!r})
backend = LocalBackend(WorkerOptions(settings.devices, program=program))
serve(settings, backend, socket.socket(fileno=number), slots, check=lambda plan, devices: ())
"""


class Process:
    """A server in a process of its own, on 127.0.0.1, whose commands are stand-ins; it can be killed and started."""

    def __init__(self, data, slots=2):
        self.data, self.control, self._slots = data, data / "control", slots
        self.control.mkdir(parents=True)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.start()

    def start(self):
        program = [sys.executable, "-S", "-E", str(STAND_IN), str(self.control)]
        number = self._listening.fileno()
        command = [sys.executable, "-c", SERVER.format(token=TOKEN), self.data, number, self._slots, *program]
        with (self.data / "server.txt").open("ab") as log:
            self.process = subprocess.Popen(
                list(map(str, command)),
                stderr=log,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                pass_fds=(number,),
            )

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def events(self):
        return [json.loads(line) for line in (self.data / "server.txt").read_text().splitlines()]

    def close(self):
        self.kill()
        self._listening.close()
        backend = LocalBackend(WorkerOptions(self.data / "devices"))
        for folder in (self.data / "jobs").glob("*"):
            backend.stop(folder)


@pytest.fixture
def server(tmp_path):
    server = Process(tmp_path / "data")
    yield server
    server.close()


@pytest.fixture
def limits():
    return UploadLimits(upload_bytes=10**6, unpacked_bytes=10**6, files=1000, pixels=10**6)
