"""A real server, a real browser and the digits: from a zip to a subnet within its limits, whose latency is measured."""

import json
import os
import subprocess
import sys
import time
import zipfile

import pytest
from selenium.webdriver.support.ui import WebDriverWait
from sklearn.datasets import load_digits

from supernet import load_subnet
from tests.service.conftest import ROOT
from tests.service.test_page import browser, entered  # noqa: F401

MINUTES, EPOCHS, LIMIT_MS, BYTES = 15, 25, 2.0, 1_500_000  # epochs are said, so that accuracy is not the machine's

REFUSED = "Failed to load resource: the server responded with a status of 422 (Unprocessable Entity)"  # the first limit

pytestmark = [pytest.mark.exhaustive, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def zipped(tmp_path_factory):
    from PIL import Image

    path = tmp_path_factory.mktemp("zipped") / "digits.zip"
    digits = load_digits()
    with zipfile.ZipFile(path, "w") as archive:
        for index, (pixels, label) in enumerate(zip(digits.images, digits.target)):
            with archive.open(f"digits/{label}/{index}.png", "w") as file:
                Image.fromarray((pixels * (255 / 16)).astype("uint8")).save(file, "PNG")
    return path


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    data = tmp_path_factory.mktemp("served")
    command = [sys.executable, "-m", "supernet_cli", "serve", "--data-dir", data, "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (data / "server.txt").open("wb") as log:
        server = subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=log)
    line = server.stdout.readline().decode()
    yield line.split()[1], data
    server.terminate()
    server.wait(30)


def test_digits_become_a_subnet_within_its_limits(browser, address, zipped):  # noqa: F811
    url, data = address
    entered(browser, url)
    values = {"images": zipped, "latency_ms": 1e-4, "stored_bytes": BYTES, "minutes": MINUTES, "epochs": EPOCHS}
    values["name"] = "digits"
    for name, value in values.items():
        browser.find_element("id", name).clear() if name == "minutes" else None
        browser.find_element("id", name).send_keys(str(value))
    browser.find_element("id", "submit").click()
    wait = WebDriverWait(browser, 120)
    wait.until(lambda b: "smallest reachable value is about" in b.find_element("id", "error").text)
    browser.find_element("id", "latency_ms").clear()
    browser.find_element("id", "latency_ms").send_keys(str(LIMIT_MS))
    begun = time.monotonic()
    browser.find_element("id", "submit").click()
    WebDriverWait(browser, 120 * MINUTES, 1).until(
        lambda b: b.find_element("id", "state").text in ("done", "failed", "cancelled")
    )
    assert browser.find_element("id", "state").text == "done", browser.find_element("id", "log").text[-3000:]
    wait.until(lambda b: b.find_elements("css selector", "#limits tr"))
    minutes = (time.monotonic() - begun) / 60
    limits = {row.text.split()[0]: row.text for row in browser.find_elements("css selector", "#limits tr")}
    assert limits["latency_ms"].endswith("yes")
    assert "measured on this machine" in limits["latency_ms"]
    assert limits["stored_bytes"].endswith("yes")
    (folder,) = (data / "jobs").iterdir()
    model, _ = load_subnet(folder / "subnet")
    assert sum(parameter.numel() for parameter in model.parameters()) * 4 <= BYTES
    rows = json.loads((folder / "evaluation.json").read_text())["rows"]
    print(json.dumps({"minutes": minutes, "limits": limits, "rows": rows}, indent=1))
    assert rows[0]["top1"] > 0.8  # ten classes
    assert minutes < MINUTES + 2
    said = [line["message"] for line in browser.get_log("browser")]
    assert [message.rsplit(" - ", 1)[1] for message in said] == [REFUSED]
