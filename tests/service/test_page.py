"""The page in a browser, on a real server whose commands are stand-ins."""

import shutil

import pytest

from tests.service.conftest import TOKEN

webdriver = pytest.importorskip("selenium.webdriver", reason="the page is not looked at: selenium is not installed")
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER),
    reason="the page is not looked at: there is no chromium or no chromedriver (apt install chromium-driver)",
)
NAME = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1280,1000"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER)) as browser:
        yield browser


def entered(browser, url):
    """Open the page by an address with the token in it."""
    browser.get("about:blank")
    browser.get(url)
    WebDriverWait(browser, 30).until(lambda b: b.find_element("id", "main").is_displayed())
    assert "token" not in browser.current_url


def text(browser, name):
    return browser.find_element("id", name).text


def test_a_job_is_submitted_watched_and_deleted(browser, server, images, tmp_path):
    archive = tmp_path / "images.zip"
    archive.write_bytes(images)
    wait = WebDriverWait(browser, 30)
    browser.get(f"{server.address}/#token=wrong")
    wait.until(lambda b: "token is missing or wrong" in text(b, "error"))
    assert not browser.find_element("id", "main").is_displayed()

    entered(browser, f"{server.address}/#token={TOKEN}")
    browser.find_element("id", "submit").click()
    wait.until(lambda b: "choose a zip" in text(b, "error"))
    for name, value in {"images": archive, "latency_ms": 0.3, "accuracy_drop": 1, "name": NAME}.items():
        browser.find_element("id", name).send_keys(str(value))
    browser.find_element("id", "submit").click()
    wait.until(lambda b: text(b, "state") == "done")
    wait.until(lambda b: b.find_elements("css selector", "#networks tr"))
    assert text(browser, "title") == NAME
    assert "found network" in text(browser, "networks")
    assert "90.0" in text(browser, "networks")
    assert browser.find_element("css selector", "#limits tr").text.endswith("yes")
    assert "Is it worth it?" in text(browser, "answers")
    assert "$ supernet train" in text(browser, "log")
    browser.find_element("id", "show").click()
    frame = browser.find_element("id", "report")
    wait.until(lambda b: "/report/" in (frame.get_attribute("src") or ""))

    browser.find_element("id", "delete").click()
    wait.until(lambda b: not b.find_elements("css selector", "#jobs tr"))
    assert not any((server.data / "jobs").iterdir())
    said = [line["message"] for line in browser.get_log("browser") if "401" not in line["message"]]
    assert said == []
