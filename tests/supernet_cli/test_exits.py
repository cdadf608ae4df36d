"""Exits in subnets of images by the command: one of several is chosen with its exits and its policy."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from exits import Chain


@pytest.fixture(autouse=True)
def here(folder, tmp_path, monkeypatch):
    shutil.copytree(folder / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)


@pytest.mark.exhaustive
def test_a_network_its_exits_and_a_policy_are_chosen_within_a_latency(command):
    for size in ("smallest", "largest"):
        result = command("extract", "--run", "run", f"--{size}", "--no-onnx", "--output", size)
        assert result.returncode == 0, result.stderr
    words = ["exits", "--subnet", "largest", "smallest", "--run", "run", "--epochs", "1", "--parts", "0.6", "1.0"]
    refused = command(*words, "--output", "exits", "--limit-ms", "0.000001")
    assert "not even the first exit of any network is within 1e-06 ms: the fastest takes" in refused.stderr
    assert not Path("exits").exists()  # before anything is trained
    result = command(*words, "--output", "exits", "--limit-ms", "1000")
    assert result.returncode == 0, result.stderr
    found = json.loads(Path("exits/exits.json").read_text())
    networks = {one["network"]: one for one in found["networks"]}
    assert [one["folder"] for one in networks.values()] == ["1", "2"]
    assert all(Path("exits", one["folder"], "model.safetensors").exists() for one in networks.values())
    slowest = max(one["whole"]["latency_ms"] for one in networks.values())
    assert {one["limit_ms"] for one in found["compared"]} == {0.6 * slowest, slowest}
    assert all(one["latency_ms"] <= one["limit_ms"] for one in found["compared"] if one["kind"] == "fixed")
    chosen = found["chosen"]
    assert chosen["network"] in networks
    assert chosen["latency_ms"] <= chosen["limit_ms"] == 1000
    assert sum(chosen["taken"]) == pytest.approx(1)
    images = np.zeros((1, 3, 32, 32), "float32")
    assert Chain("exits/chain")(images).exit < len(chosen["kept"])
    assert "chosen" in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--subnet", "a", "a"], "name a network, or several that differ, not 'a a'"),
        (["--subnet", "a", "--limit-ms", "0"], "a limit of the latency is above 0 ms, not 0.0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(command, words, message):
    result = command("exits", *words, "--run", "run", "--output", "exits")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
