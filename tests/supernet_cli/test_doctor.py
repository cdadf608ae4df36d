import configparser
import importlib.metadata
from pathlib import Path

import pytest

from supernet import __version__
from supernet_cli.doctor import EXTRAS

ROOT = Path(__file__).parents[2]


def test_every_extra_says_what_it_enables():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert set(EXTRAS) == set(setup["options.extras_require"]) - {"all"}


def test_versions_devices_and_extras(command, monkeypatch):
    monkeypatch.setattr("supernet_cli.doctor.console.width", 200)
    asked = importlib.metadata.version
    versions = {"onnx": "1.16.0", "openvino": None}

    def version(name):
        found = versions[name] if name in versions else asked(name)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    result = command("doctor")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"supernet {__version__}, Python 3." in result.stdout
    lines = result.stdout.splitlines()
    assert any("torch " in line and asked("torch") in line and " ok " in line for line in lines)
    assert any(line.startswith("cpu: ") for line in lines)
    assert any("onnx needs >=1.17: pip install 'supernet[onnx]'" in line for line in lines)
    assert any("openvino missing: pip install 'supernet[openvino]'" in line for line in lines)


@pytest.mark.parametrize(("found", "problem"), [("2.0", "torch needs >=2"), (None, "torch missing")])
def test_what_is_needed_and_not_there_is_one_line(command, monkeypatch, found, problem):
    asked = importlib.metadata.version

    def version(name):
        if name == "torch" and found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found if name == "torch" else asked(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    result = command("doctor")
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {problem}")
    assert result.stderr.count("\n") == 1
