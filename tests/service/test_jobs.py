"""Jobs whose commands are the real ones, on the digits: a model that is made smaller, its alternatives, few images."""

import csv
import io

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional as F

from predictors import this_device
from predictors.measuring.runtimes import onnx_timer
from service.feasibility import check_reachable
from service.progress import DONE
from service.worker import PROGRAM
from tests.service.conftest import packed

MODEL, SIZE, MINUTES = "mobilenetv3_small_050", 32, 20

pytestmark = [pytest.mark.exhaustive, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def digits():
    """Images of `SIZE` pixels as PNG, and their classes."""
    found = load_digits()
    files = []
    for pixels in found.images:
        file = io.BytesIO()
        Image.fromarray((pixels * (255 / 16)).astype("uint8")).resize((SIZE, SIZE)).convert("RGB").save(file, "PNG")
        files.append(file.getvalue())
    return files, found.target


@pytest.fixture(scope="module")
def weights(digits):
    """The model's, trained on the first thousand digits, as a customer would send them."""
    files, labels = digits
    images = torch.stack([torch.tensor(np.array(Image.open(io.BytesIO(file)))) for file in files[:1000]])
    images = (images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    labels = torch.tensor(labels[:1000])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(MODEL, num_classes=10)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        for _ in range(12):
            for batch in torch.randperm(1000).split(50):
                optimizer.zero_grad()
                F.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
    assert (model.eval()(images).argmax(1) == labels).float().mean() > 0.9
    return safetensors.torch.save(model.state_dict())


@pytest.fixture
def service(make_service):
    return make_service(check=check_reachable, program=PROGRAM)


def submitted(service, weights, images, **request):
    said = {"model": MODEL, "weights": "uploaded", "input_size": SIZE, "minutes": MINUTES, "epochs": 2, **request}
    job = service.submit(**said)
    for name, content in (("weights", weights), ("images", images)):
        response = service.client.put(f"/jobs/{job}/{name}", content=content)
        assert response.status_code == 200, response.text
    return job, service.settings.jobs / job


def ended(service, job):
    service.look_until(lambda: service.store.get(job).state in ("done", "failed", "waiting"), 4 * 60 * MINUTES)
    row = service.store.get(job)
    assert row.state != "failed", (row.message, service.client.get(f"/jobs/{job}/log").text[-3000:])
    return row.state


def test_a_model_becomes_smaller_for_a_device_that_its_owner_measures(service, digits, weights):
    files, labels = digits
    images = packed({f"digits/{label}/{i}.png": file for i, (file, label) in enumerate(zip(files, labels))})
    limits = {"latency_ms": 50, "accuracy_drop": 40}
    job, folder = submitted(service, weights, images, device="own:board", precision="int8", limits=limits)
    assert ended(service, job) == "waiting"
    manifest = folder / "measure" / "manifest.csv"
    rows = list(csv.DictReader(manifest.read_text().splitlines()))
    assert len(rows) == 10
    board, image = this_device("onnxruntime"), (torch.zeros(1, 3, SIZE, SIZE),)
    for row in rows:
        timer = onnx_timer(folder / "measure" / row["file"], board, image)
        row["latency_ms"] = float(np.median(timer(20)))
    filled = io.StringIO()
    writer = csv.DictWriter(filled, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    response = service.client.put(f"/jobs/{job}/measurements", content=filled.getvalue().encode())
    assert response.status_code == 200, response.text
    assert ended(service, job) == "done"
    stages = {stage["name"]: stage for stage in service.state(job)["stages"]}
    assert {stage["state"] for stage in stages.values()} == {DONE}, stages
    assert {"suggest", "fit", "finetune", "quantise", "baseline-int8", "baseline-smaller"} <= stages.keys()
    proof = service.client.get(f"/jobs/{job}/proof").json()
    print(proof)
    own, *others = proof["networks"]
    assert own["folder"] == "int8"
    assert {row["folder"] for row in others} == {
        "tuned",
        "baseline/largest",
        "baseline/largest-int8",
        "baseline/smaller",
    }
    assert own["accuracy"] > 0.5  # ten classes
    kept = {limit["name"]: limit for limit in proof["limits"]}
    assert kept["latency_ms"]["known_by"] == "predicted for board, not measured"
    assert kept["latency_ms"]["kept"]
    assert 0 < kept["accuracy_drop"]["standard_error"] < 10


def test_few_images_refit_weights_that_know_the_classes(service, digits, weights):
    files, labels = digits
    entries, taken = {}, dict.fromkeys(range(10), 0)
    for i in range(1000, len(files)):
        label = int(labels[i])
        part = "train" if taken[label] < 6 else "val"
        taken[label] += 1
        entries[f"{part}/{label}/{i}.png"] = files[i]
    job, folder = submitted(service, weights, packed(entries))
    assert ended(service, job) == "done"
    log = service.client.get(f"/jobs/{job}/log").text
    assert "--refit-images 60" in log
    assert not (folder / "tuned").exists()
    proof = service.client.get(f"/jobs/{job}/proof").json()
    print(proof)
    assert any("fitted to them layer by layer" in line for line in proof["answers"]["What if I have little data?"])
    assert proof["networks"][0]["accuracy"] > 0.5
