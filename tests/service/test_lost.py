"""Nothing is lost: workers and servers that are killed, a disk that is full, more jobs than slots, a cluster."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import httpx
import pytest

from service.backends import RayBackend, WorkerOptions, _is_locked, _runs, _worker_of
from service.dispatcher import MOST_DEATHS, Dispatcher
from tests.service.conftest import HEADERS

STAGES = 10  # of a job without wishes


@pytest.mark.exhaustive  # benchmarks/service.py asks as fifty clients do
def test_ten_jobs_at_once_on_two_slots(make_service, images):
    service = make_service(slots=2)
    jobs = [service.submit(images, seed=seed) for seed in range(10)]
    most = 0

    def watched():
        nonlocal most
        most = max(most, sum(_is_locked(service.settings.jobs / job) for job in jobs))
        return service.store.counts()["done"] == 10

    service.look_until(watched, 120)
    assert most == 2
    began = Counter(job for job, *_ in service.started())
    assert began == dict.fromkeys(jobs, STAGES)
    order = list(dict.fromkeys(job for job, *_ in service.started()))
    assert [order.index(job) // 2 for job in jobs] == pytest.approx([i // 2 for i in range(10)], abs=1)  # first come


def test_a_worker_that_is_killed_is_replaced_and_goes_on(service, images):
    job = service.submit(images)
    folder = service.settings.jobs / job
    service.look_until(lambda: (folder / "run" / "supernet.safetensors").exists())
    (service.control / "slow").write_text("60")
    service.look_until(lambda: len(service.started()) > 0 and service.started()[-1][1] in ("search", "extract"))
    worker, (_, command, process) = _worker_of(folder), service.started()[-1]
    os.kill(worker, signal.SIGKILL)
    (service.control / "slow").unlink()
    assert service.ends(job) == ["done"]
    assert not _runs(int(process))  # what the worker had begun did not go on beside its successor
    commands = Counter(name for _, name, _ in service.started())
    assert (commands["train"], commands[command] - (command == "extract")) == (2, 2)
    assert service.dispatcher.lost_workers == 1
    assert service.store.get(job).deaths == 0


def test_a_job_that_kills_its_workers_is_given_up(service, images):
    (service.control / "slow").write_text("60")
    job = service.submit(images)
    folder = service.settings.jobs / job
    for killed in range(MOST_DEATHS):
        service.look_until(lambda killed=killed: len(service.started()) == killed + 1)
        os.kill(_worker_of(folder), signal.SIGKILL)
    assert service.ends(job) == ["failed"]
    assert f"{MOST_DEATHS} workers were lost in the stage check-images" in service.state(job)["message"]


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.address, headers=HEADERS, timeout=30) as client:
        yield client


def test_jobs_outlive_their_server(server, client, images):
    jobs = []
    for _ in range(3):
        jobs.append(client.post("/jobs", json={"minutes": 5}).json()["id"])
        assert client.put(f"/jobs/{jobs[-1]}/images", content=images).status_code == 200
    unfinished = client.post("/jobs", json={"minutes": 5}).json()["id"]
    (server.control / "slow").write_text("0.5")
    until_started(server, 2)
    server.kill()
    workers = [_worker_of(server.data / "jobs" / job) for job in jobs[:2]]
    time.sleep(0.3)
    assert all(map(_runs, workers))  # they go on by themselves
    (server.control / "slow").unlink()
    server.start()
    until = time.monotonic() + 60
    while list((states := told(client)).values()).count("done") < 3:
        assert time.monotonic() < until, states
        time.sleep(0.1)
    assert states == dict.fromkeys(jobs, "done") | {unfinished: "uploading"}
    began = Counter(tuple(line.split()[:2]) for line in (server.control / "started").read_text().splitlines())
    assert {count for (_, name), count in began.items() if name == "search"} == {1}  # nothing was done twice
    events = [event["event"] for event in server.events()]
    assert events.count("job started") == 3


def told(client):
    for _ in range(100):
        try:
            return {job["id"]: job["state"] for job in client.get("/jobs").json()["jobs"]}
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the server does not come back")


def until_started(server, count):
    for _ in range(300):
        path = server.control / "started"
        if path.exists() and len({line.split()[0] for line in path.read_text().splitlines()}) >= count:
            return
        time.sleep(0.05)
    raise AssertionError("no worker was started")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no disk that is always full")
def test_a_full_disk_refuses_and_loses_nothing(service, images, monkeypatch):
    job = service.submit()
    received = service.settings.jobs / job / ".received"
    received.symlink_to("/dev/full")
    response = service.client.put(f"/jobs/{job}/images", content=images)
    assert (response.status_code, response.json()["error"][:27]) == (507, "the server's disk is full: ")
    assert list((service.settings.jobs / job).iterdir()) == []
    assert service.client.put(f"/jobs/{job}/images", content=images).status_code == 200
    log = service.settings.jobs / job / "log.txt"
    log.symlink_to("/dev/full")
    assert service.ends(job) == ["failed"]
    assert "No space left on device" in service.state(job)["message"]
    log.unlink()
    assert service.client.post(f"/jobs/{job}/resume").status_code == 200
    monkeypatch.setattr(service.dispatcher, "_least_free_bytes", 10**18)
    service.dispatcher.look()
    assert service.store.get(job).state == "queued"  # jobs wait for room
    assert service.client.post("/jobs", json={"minutes": 1}).status_code == 507
    assert service.client.get("/health").status_code == 503
    monkeypatch.undo()
    assert service.ends(job) == ["done"]


def test_a_job_can_be_gone_on_with_by_hand(service, images):
    job = service.submit(images)
    folder = service.settings.jobs / job
    command = [sys.executable, "-m", "service.worker", *service.backend._options.command(folder)[3:]]
    environment = os.environ | service.backend._options.environment
    subprocess.run(command, env=environment, check=True)
    assert service.ends(job) == ["done"]
    assert len(service.started()) == STAGES


def test_a_stage_that_takes_too_long_is_stopped(service, images):
    from service import worker
    from service.plan import Plan
    from service.stages import Setting

    job = service.submit(images)
    folder = service.settings.jobs / job
    setting = Setting(folder, Plan.load(folder), service.settings.devices)
    own = worker.Worker(setting, ["sleep"], dict(os.environ), worker.held(folder))
    record = own.progress.of("search")
    with pytest.raises(worker.Overdue, match="give the job more minutes"):
        own._run(["sleep", "60"], record, 0.2)
    assert 0.2 <= record.seconds < 10
    os.close(own._lock)


def test_ray_jobs_are_another_backend(service, images):
    class Client:
        """Ray's client of jobs, as far as it is used, over processes."""

        def __init__(self):
            self.jobs = {}

        def submit_job(self, entrypoint, submission_id, runtime_env, entrypoint_num_cpus):
            assert entrypoint_num_cpus == 1
            environment = os.environ | runtime_env["env_vars"]
            self.jobs[submission_id] = subprocess.Popen(
                ["sh", "-c", f"exec {entrypoint}"], env=environment, start_new_session=True
            )

        def get_job_status(self, submission_id):
            if submission_id not in self.jobs:
                raise RuntimeError(f"Request failed with status code 404: Job {submission_id} does not exist.")
            return SimpleNamespace(value="RUNNING" if self.jobs[submission_id].poll() is None else "SUCCEEDED")

        def stop_job(self, submission_id):
            os.killpg(self.jobs[submission_id].pid, signal.SIGKILL)

    client = Client()
    options = service.backend._options
    backend = RayBackend(WorkerOptions(options.devices, program=options.program), "auto", client)
    service.dispatcher = Dispatcher(service.store, service.settings.jobs, backend, 2)
    (service.control / "slow").write_text("60")
    jobs = [service.submit(images), service.submit(images)]
    service.look_until(lambda: len(service.started()) == 2)
    (service.control / "slow").unlink()
    for process in list(client.jobs.values()):
        process.kill()  # and with it the command that it has begun, which Ray knows nothing of
    assert service.ends(*jobs) == ["done", "done"]
    assert len(client.jobs) == 4
    (service.control / "slow").write_text("60")
    job = service.submit(images)
    service.look_until(lambda: backend.is_alive(service.settings.jobs / job))
    service.dispatcher.delete(job)
    assert not (service.settings.jobs / job).exists()
    assert not backend.is_alive(service.settings.jobs / job)
    for process in client.jobs.values():
        process.wait()
