"""Jobs over HTTP, with commands that take no time."""

import io
import json
import zipfile

import pytest

from service.backends import _runs
from service.store import STATES
from tests.service.conftest import HEADERS, packed, png


def test_a_job_from_images_to_its_proof(service, images):
    job = service.submit(images, limits={"latency_ms": 0.3}, name="<b>mine</b>")
    assert service.state(job)["state"] == "queued"
    assert service.ends(job) == ["done"]
    told = service.state(job)
    assert [stage["state"] for stage in told["stages"]] == ["done"] * len(told["stages"])
    names = ["check-images", "measure", "probe", "train", "search", "extract"]
    names += ["baseline-largest", "baseline-int8", "baseline-smaller", "evaluate"]
    assert [stage["name"] for stage in told["stages"]] == names
    log = service.client.get(f"/jobs/{job}/log")
    assert "$ supernet search --run run --output search" in log.text
    rest = service.client.get(f"/jobs/{job}/log?start={log.headers['X-Next']}")
    assert rest.text == ""

    proof = service.client.get(f"/jobs/{job}/proof").json()
    own, *others = proof["networks"]
    assert (own["network"], own["accuracy"]) == ("found network", 0.9)
    assert own["standard_error"] == pytest.approx((0.9 * 0.1 / 120) ** 0.5)
    assert {row["folder"] for row in others} == {"baseline/largest", "baseline/largest-int8", "baseline/smaller"}
    (limit,) = proof["limits"]
    assert (limit["name"], limit["value"], limit["kept"]) == ("latency_ms", 0.2, True)
    assert list(proof["answers"]) == [
        "Is it worth it?",
        "Does it need my data to leave?",
        "What if I have little data?",
    ]
    files = [file["path"] for file in service.client.get(f"/jobs/{job}/files").json()["files"]]
    assert "subnet/model.safetensors" in files
    assert not any(name.startswith(("images", "run")) for name in files)
    assert service.client.get(f"/jobs/{job}/files/subnet/model.safetensors").content == b"weights"
    report = service.client.get("/" + told["report"], headers={"Authorization": ""})
    assert report.text == "<script>1</script>"
    assert report.headers["Content-Security-Policy"].startswith("sandbox allow-scripts; default-src 'none'")


def test_the_measurements_of_a_device_of_ones_own_are_waited_for(service, images):
    job = service.submit(images, device="own:my-phone", precision="int8", limits={"latency_ms": 5})
    assert service.ends(job) == ["waiting"]
    assert service.state(job)["next"] == "PUT measurements.csv"
    with zipfile.ZipFile(io.BytesIO(service.client.get(f"/jobs/{job}/archive/measure").content)) as archive:
        assert len(archive.namelist()) == 11
        manifest = archive.read("measure/manifest.csv").decode().splitlines()

    def bring(lines):
        return service.client.put(f"/jobs/{job}/measurements", content="\n".join(lines))

    assert "fill in every line" in bring([manifest[0], *(f"{line}2.5" for line in manifest[1:-1])]).json()["error"]
    assert "measurements.csv, line 2" in bring([manifest[0], f"{manifest[1]}-1"]).json()["error"]
    assert service.ends(job) == ["waiting"]
    assert bring([manifest[0], *(f"{line}{2 + i / 10}" for i, line in enumerate(manifest[1:]))]).status_code == 200
    assert service.ends(job) == ["done"]
    commands = [command for _, command, _ in service.started()]
    assert commands.index("train") < len(commands) - 1 - commands[::-1].index("fit-latency") < commands.index("search")
    (limit,) = service.client.get(f"/jobs/{job}/proof").json()["limits"]
    assert (limit["value"], limit["standard_error"], limit["known_by"]) == (
        0.2,
        0.01,
        "predicted for my-phone, not measured",
    )


@pytest.mark.parametrize("token", [None, "", "wrong", "é"])
def test_without_the_token_there_is_nothing(service, images, token):
    job = service.submit()
    said = {} if token is None else {"Authorization": f"Bearer {token}".encode()}
    service.client.headers.pop("Authorization")
    for method, path in [
        ("GET", "/jobs"),
        ("POST", "/jobs"),
        ("GET", f"/jobs/{job}"),
        ("PUT", f"/jobs/{job}/images"),
        ("PUT", f"/jobs/{job}/weights"),
        ("PUT", f"/jobs/{job}/measurements"),
        ("GET", f"/jobs/{job}/log"),
        ("GET", f"/jobs/{job}/proof"),
        ("GET", f"/jobs/{job}/files"),
        ("GET", f"/jobs/{job}/files/subnet/config.json"),
        ("GET", f"/jobs/{job}/archive/subnet"),
        ("GET", f"/jobs/{job}/report/{token or 'x'}"),
        ("POST", f"/jobs/{job}/cancel"),
        ("POST", f"/jobs/{job}/resume"),
        ("DELETE", f"/jobs/{job}"),
        ("DELETE", f"/jobs/{job}/images"),
        ("GET", "/devices"),
        ("GET", "/metrics"),
    ]:
        response = service.client.request(method, path, headers=said)
        assert response.status_code == 401, (method, path)
        assert list(response.json()) == ["error"]
    assert service.client.get("/health").json()["ok"]
    assert "Compression as a service" in service.client.get("/").text
    service.client.headers.update(HEADERS)
    assert service.state(job)["state"] == "uploading"


def test_every_route_is_asked_for_above(service):
    guarded = {"/jobs", "/jobs/{job}", "/devices", "/metrics"}
    parts = "weights images measurements log proof files files/{path:path} archive/{part} report/{given} cancel resume"
    guarded |= {f"/jobs/{{job}}/{part}" for part in parts.split()}
    assert {route.path for route in service.client.app.routes} - guarded == {"/", "/page.{kind}", "/health"}


def test_files_are_those_of_the_job_alone(service, images):
    job, other = service.submit(images), service.submit()
    assert service.ends(job) == ["done"]
    (service.settings.jobs / other / "subnet").mkdir()
    (service.settings.jobs / other / "subnet" / "config.json").write_text("{}")
    (service.settings.jobs / job / "subnet" / "link").symlink_to("/etc/passwd")
    for path in (
        "../job.json",
        "subnet/../job.json",
        "%2e%2e/job.json",
        "..%2f..%2ftoken",
        f"../{other}/subnet/config.json",
        "/etc/passwd",
        "images/train/red/0.png",
        "job.json",
        "run/supernet.safetensors",
        "subnet/link",
    ):
        assert service.client.get(f"/jobs/{job}/files/{path}").status_code in (404, 405), path
    for job in ("..", "../jobs", "%2e%2e"):
        assert service.client.get(f"/jobs/{job}/log").status_code == 404


def test_what_is_deleted_is_gone(service, images):
    job = service.submit(images)
    assert service.client.delete(f"/jobs/{job}/images").status_code == 409
    assert service.ends(job) == ["done"]
    folder = service.settings.jobs / job
    assert (folder / "images").exists()
    assert service.client.delete(f"/jobs/{job}/images").status_code == 204
    assert not (folder / "images").exists()
    assert service.client.get(f"/jobs/{job}/files/subnet/config.json").status_code == 200
    assert service.client.delete(f"/jobs/{job}").status_code == 204
    assert not folder.exists()
    assert service.client.get(f"/jobs/{job}").status_code == 404
    assert service.store.listed() == []


def test_a_job_that_runs_is_deleted_with_its_processes(service, images):
    (service.control / "slow").write_text("60")
    job = service.submit(images)
    service.look_until(lambda: service.started())
    ((_, _, process),) = service.started()
    assert service.client.delete(f"/jobs/{job}").status_code == 204
    assert not _runs(int(process))
    assert not (service.settings.jobs / job).exists()


def test_a_job_that_was_cancelled_or_failed_goes_on(service, images):
    (service.control / "fail").write_text("search")
    job = service.submit(images)
    assert service.ends(job) == ["failed"]
    assert service.state(job)["message"] == "search: there is something wrong with 17: say 18"
    (service.control / "fail").unlink()
    assert service.client.post(f"/jobs/{job}/resume").status_code == 200
    assert service.client.post(f"/jobs/{job}/cancel").json()["state"] == "cancelled"
    assert service.client.post(f"/jobs/{job}/cancel").status_code == 409
    assert service.client.post(f"/jobs/{job}/resume").json()["state"] == "queued"
    assert service.ends(job) == ["done"]
    commands = [command for _, command, _ in service.started()]
    assert (commands.count("train"), commands.count("search")) == (2, 2)  # probe and training, and twice the search


def test_a_baseline_that_fails_is_left_out(service, images):
    (service.control / "fail").write_text("train-standalone")
    job = service.submit(images)
    assert service.ends(job) == ["done"]
    proof = service.client.get(f"/jobs/{job}/proof").json()
    assert "baseline/smaller" not in {row["folder"] for row in proof["networks"]}
    assert "baseline-smaller was left out: there is something wrong with 17" in " ".join(
        proof["answers"]["Is it worth it?"]
    )


def test_what_cannot_be_is_one_line(service, images, make_service):
    def refused(status, response):
        assert response.status_code == status, response.text
        assert "\n" not in response.json()["error"]
        return response.json()["error"]

    post, put = service.client.post, service.client.put
    assert "no JSON" in refused(400, post("/jobs", content=b"{"))
    assert "no JSON" in refused(400, post("/jobs", content=b"[" * 60000))
    assert "at most" in refused(413, post("/jobs", content=b" " * 10**5))
    assert "no field 'minute'" in refused(422, post("/jobs", json={"minute": 3}))
    assert "upload a zip" in refused(403, post("/jobs", json={"minutes": 3, "path": "/etc"}))
    assert "no model 'resnet1'" in refused(422, put_model(service, images, "resnet1"))
    job = service.submit()
    assert "no zip" in refused(422, put(f"/jobs/{job}/images", content=b"something"))
    assert "empty" in refused(400, put(f"/jobs/{job}/images", content=b""))
    few = packed({f"{name}/{i}.png": png() for name in "ab" for i in range(20)})
    assert "100 in val/ would do" in refused(422, put(f"/jobs/{job}/images", content=few))
    assert "without weights" in refused(409, put(f"/jobs/{job}/weights", content=b"x"))
    assert "customer's own" in refused(409, put(f"/jobs/{job}/measurements", content=b"x"))
    assert "goes on if it failed" in refused(409, post(f"/jobs/{job}/resume"))
    assert "start: " in refused(422, service.client.get(f"/jobs/{job}/log?start=x"))
    assert service.client.get(f"/jobs/{job}/log?start={10**30}").text == ""
    assert "no proof yet" in refused(422, service.client.get(f"/jobs/{job}/proof"))
    assert sorted(path.name for path in (service.settings.jobs / job).iterdir()) == []
    assert put(f"/jobs/{job}/images", content=images).status_code == 200  # it may be tried again
    assert "come already" in refused(409, put(f"/jobs/{job}/images", content=images))
    small = make_service(most_jobs=1, offline=True)
    assert "offline" in refused(
        422, small.client.post("/jobs", json={"minutes": 1, "model": "resnet18", "weights": "published"})
    )
    small.submit()
    assert "1 unfinished jobs" in refused(429, small.client.post("/jobs", json={"minutes": 1}))


def put_model(service, images, model):
    job = service.submit(model=model)
    return service.client.put(f"/jobs/{job}/images", content=images)


def test_uploads_end_where_they_are_too_long(make_service, limits):
    service = make_service(limits=limits)
    job = service.submit()
    told = service.client.put(f"/jobs/{job}/images", content=b"x" * (10**6 + 1))
    untold = service.client.put(f"/jobs/{job}/images", content=(b"x" * 10**5 for _ in range(11)))
    for response in (told, untold):
        assert (response.status_code, "1000000 bytes" in response.json()["error"]) == (413, True)
    assert list((service.settings.jobs / job).iterdir()) == []


def test_weights_are_safetensors_and_no_pickle(service, images):
    import numpy as np
    from safetensors.numpy import save

    job = service.submit(model="resnet18", weights="uploaded")
    assert service.client.put(f"/jobs/{job}/images", content=images).json()["error"] == "PUT the weights first"
    response = service.client.put(f"/jobs/{job}/weights", content=b"\x80\x04\x95" + bytes(100))
    assert (response.status_code, "no safetensors" in response.json()["error"]) == (422, True)
    content = save({"fc.weight": np.zeros((2, 3), np.float32)})
    assert service.client.put(f"/jobs/{job}/weights", content=content).status_code == 200
    assert service.client.put(f"/jobs/{job}/images", content=images).json()["state"] == "queued"
    plan = json.loads((service.settings.jobs / job / "job.json").read_text())
    assert plan["space_options"] == {"name": "resnet18", "pretrained": "weights.safetensors"}


def test_images_at_a_path_stay_there(make_service, tmp_path, images):
    folder = tmp_path / "allowed" / "mine"
    with zipfile.ZipFile(io.BytesIO(images)) as archive:
        for part in ("train", "val"):
            archive.extractall(folder / part)
    outside = tmp_path / "allowed" / "link"
    outside.symlink_to("/etc")
    service = make_service(roots=(tmp_path / "allowed",))
    assert service.client.post("/jobs", json={"minutes": 1, "path": str(outside)}).status_code == 403
    job = service.submit(path=str(folder))
    assert service.state(job)["state"] == "queued"
    assert service.client.put(f"/jobs/{job}/images", content=images).status_code == 409
    service.client.delete(f"/jobs/{job}")
    assert len(list(folder.rglob("*.png"))) == 1200


def test_metrics_and_health(service, images):
    service.ends(service.submit(images))
    text = service.client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['supernet_jobs{state="done"}'] == "1"
    assert {name for name in values if name.startswith("supernet_jobs")} == {
        f'supernet_jobs{{state="{state}"}}' for state in STATES
    }
    assert values['supernet_requests_total{method="PUT",status="200"}'] == "1"
    assert int(values["supernet_free_bytes"]) > 0
