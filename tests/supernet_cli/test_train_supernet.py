"""`supernet train` and `supernet extract`."""

import json

import pytest
import torch

from supernet.artifacts.subnet import load_subnet

SHORT = ["--epochs", "1", "--warmup-epochs", "0", "--holdout", "0.97", "--batch-size", "8", "--eval-epochs", "0"]


@pytest.fixture(scope="module")
def run(command, tmp_path_factory):
    output = tmp_path_factory.mktemp("scripts") / "run"
    result = command("train", *SHORT, "--output", output)
    assert result.returncode == 0, result.stderr
    assert f"--run {output}" in result.stdout.replace("\n", "")
    return output


def test_a_trained_subnet_is_extracted(command, run, tmp_path):
    result = command("extract", "--run", run, "--smallest", "--calibration-images", "40", "--output", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    model, config = load_subnet(tmp_path / "out")
    assert model(torch.zeros(2, *config.input_size)).shape == (2, 10)
    assert config.facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert (tmp_path / "out" / "model.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "imagenet"], "there is no recipe 'imagenet'; the recipes are digits, "),
        (["--space", "mobilenet"], "there is no search space 'mobilenet'; the spaces are "),
        (["--space-options", '{"width": 2}'], "do not fit the space 'mobilenet_v3_micro'"),
        (["--dataset", "folder", "--root", "nowhere"], "no images at root 'nowhere'"),
        (
            ["--pretrained", "w.safetensors"],
            "the space 'mobilenet_v3_micro' starts from no file of weights; those that",
        ),
        (["--find-lr", "3"], "a range test takes at least 20 steps, not 3"),
        (["--batch-size", "5000"], "a batch of 5000 is more than the 1150 training images"),
    ],
)
def test_bad_input_ends_in_one_line(command, tmp_path, arguments, message):
    result = command("train", *arguments, "--output", tmp_path / "run")
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say which architecture"),
        (["--arch", "{"], "is not JSON"),
        (["--arch", json.dumps({"resolution": 33})], "choice 'resolution' is one of (24, 28, 32), not 33"),
        (["--history", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_extraction_of_what_there_is_not_ends_in_one_line(command, run, tmp_path, arguments, message):
    result = command("extract", "--run", run, *arguments, "--output", tmp_path / "out")
    assert result.returncode in (1, 2)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_flag_or_a_wrong_value_is_usage(command, tmp_path):
    for arguments in (["--epochz", "3"], ["--epochs", "0"], ["--epochs", "many"]):
        result = command("train", *arguments, "--output", tmp_path / "run")
        assert result.returncode == 2
        assert arguments[0].strip("-")[:5] in result.stderr
        assert "Traceback" not in result.stderr


def test_a_file_where_a_folder_has_to_be_is_named(command, tmp_path):
    (tmp_path / "taken").write_text("")
    result = command("train", "--epochs", 1, "--warmup-epochs", 0, "--workers", 0, "--output", tmp_path / "taken")
    assert result.returncode == 2
    assert result.stderr.strip().endswith("taken is a file where a folder has to be: name another")
