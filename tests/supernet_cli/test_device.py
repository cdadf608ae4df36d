"""`--device` in the commands that judge networks: what is computed elsewhere is what the CPU gives."""

import json

import pytest
import torch

from supernet import load_subnet
from supernet.training.data import DataConfig, load_data
from supernet_cli.model_training import on_test_images
from tests.elsewhere import RAN

CELLS = ["--space", "nasbench201", "--space-options", '{"channels": 4, "cells": 1}', "--data.workers", "0"]


@pytest.fixture
def on_both(command, elsewhere, tmp_path):
    """Run a command on the CPU and elsewhere; gives the two places that it wrote to."""

    def run(*arguments, output="--output"):
        for device in ("cpu", elsewhere):
            RAN.clear()
            result = command(*arguments, "--device", device, output, tmp_path / f"{output}-{device}")
            assert result.returncode == 0, result.stderr
            assert (RAN["aten::convolution"] > 0) == (device == elsewhere)
        return tmp_path / f"{output}-cpu", tmp_path / f"{output}-{elsewhere}"

    return run


def test_a_search_is_told(command, folder, monkeypatch):
    def run_search(*arguments, device, workers, gpus_per_worker, **others):
        raise ValueError(f"told: {device} {workers} {gpus_per_worker}")

    monkeypatch.setattr("supernet_cli.search.run_search", run_search)
    flags = ["--device", "cuda", "--workers", "2", "--gpus-per-worker", "0.5"]
    assert command("search", "--run", folder / "run", *flags).stderr == "error: told: cuda 2 0.5\n"
    assert command("search", "--run", folder / "run").stderr == "error: told: auto 0 0.0\n"


def test_a_sweep_and_its_searches_are_told(command, folder, monkeypatch):
    told = []

    def run_sweep(search, trials, *_, gpus, **others):
        search(trials[0], folder / "search.jsonl", None, None)
        raise ValueError(f"told: {gpus}")

    monkeypatch.setattr("supernet_cli.sweep.run_sweep", run_sweep)
    monkeypatch.setattr("supernet_cli.sweep.run_search", lambda *_, device, **others: told.append(device))
    sweep = ["sweep", "--run", folder / "run", "--predictors", folder / "phone"]
    assert command(*sweep, "--gpus-per-worker", "0.5").stderr == "error: told: 0.5\n"
    assert command(*sweep).stderr == "error: told: 0.0\n"
    assert told == ["cuda", "cpu"]


def test_scores_without_training(on_both):
    here, there = on_both("zero-cost", *CELLS, "--archs", "2", "--batch-size", "4", "--scores", "synflow,snip")
    expected, found = ([json.loads(line) for line in path.read_text().splitlines()] for path in (here, there))
    assert [row.pop("arch") for row in found] == [row.pop("arch") for row in expected]
    assert found == [pytest.approx(row) for row in expected]


def test_a_subnet_is_calibrated_tested_and_evaluated(on_both, folder):
    smallest = ["--smallest", "--no-onnx", "--calibration-images", "40"]
    here, there = on_both("extract", "--run", folder / "run", *smallest)
    for name in ("config.json", "model.safetensors"):
        assert (here / name).read_bytes() == (there / name).read_bytes()
    figures = on_both("evaluate", here, "--no-latency", "--workers", "0", output="--json")
    here, there = (json.loads(path.read_text())["rows"] for path in figures)
    assert here == there


def test_a_trained_model_is_tested_where_it_was_trained(command, folder, elsewhere, tmp_path):
    subnet = [
        "--smallest",
        "--no-onnx",
        "--calibration-images",
        "40",
        "--device",
        "cpu",
        "--output",
        tmp_path / "subnet",
    ]
    assert command("extract", "--run", folder / "run", *subnet).returncode == 0
    data = load_data(DataConfig())
    RAN.clear()
    found = [
        on_test_images(load_subnet(tmp_path / "subnet"), data, torch.device(place)) for place in ("cpu", elsewhere)
    ]
    assert found[0] == found[1] is not None
    assert RAN["aten::convolution"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("search --run RUN --output OUT --device tpu", "device is cpu, cuda, cuda:N or auto, not 'tpu'"),
        ("search --run RUN --output OUT --gpus-per-worker 1", "there are 1 GPUs for each worker, but no workers"),
        ("extract --run RUN --largest --output OUT --device cuda", "this machine has no GPU that torch can use"),
        ("evaluate resnet10t --json OUT --device cuda:1", "this machine has no GPU that torch can use"),
        ("zero-cost --output OUT --device mps", "torch cannot compute there on this machine"),
        ("sweep --run RUN --predictors PHONE --output OUT --device cuda", "that they are given, here none"),
    ],
)
def test_a_device_that_is_not_here_is_one_clear_line(command, folder, tmp_path, arguments, message):
    places = {"RUN": folder / "run", "PHONE": folder / "phone", "OUT": tmp_path / "out"}
    result = command(*(places.get(word, word) for word in arguments.split()))
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
