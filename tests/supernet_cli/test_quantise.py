"""A subnet in int8 by the command line."""

import json

import pytest
import timm
import torch

from compress.quantisation.processor import weight_bits
from compress.transforms import Bits
from supernet.artifacts.export import onnx_runner
from supernet.artifacts.runs import open_data
from supernet.artifacts.subnet import Subnet, load_subnet, save_subnet
from supernet.artifacts.subnet_config import SubnetConfig
from supernet.space import Arch
from supernet.training.recipes import RECIPES


@pytest.fixture(scope="module")
def subnet(tmp_path_factory):
    """An untrained network for digits."""
    job = RECIPES["digits"]()
    data = open_data(job.data, 0)
    options = json.dumps({"name": "resnet10t", "input_size": 32})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("resnet10t", num_classes=10).eval()
    folder = tmp_path_factory.mktemp("subnets") / "plain"
    save_subnet(folder, Subnet(model, SubnetConfig.of("timm", options, Arch({"resolution": 32}), data)), onnx=False)
    return folder


def test_a_subnet_is_written_in_int8_with_what_it_costs(subnet, command, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("supernet_cli.quantise.AGREEMENT", 1.01)  # which no network has
    output = tmp_path / "int8"
    result = command("quantise", "--subnet", subnet, "--calibration-images", "64", "--output", output)
    assert result.returncode == 0, result.stderr
    found = json.loads((output / "quantisation.json").read_text())
    rows = found["on_test_images"]
    assert set(rows) == {"float", "int8"}
    assert rows["int8"]["bytes"] == (output / "model.int8.onnx").stat().st_size < 0.3 * rows["float"]["bytes"]
    assert (rows["float"]["points"], found["precisions"]) == (0, {})
    assert all(row["milliseconds"] > 0 for row in rows.values())
    assert "points fewer right, give or take" in result.stdout
    alike = f"gives the same class for {100 * rows['int8']['told_alike']:.0f} % of the images only"
    assert alike in caplog.text
    images = torch.randn(3, 3, 32, 32)
    model = load_subnet(output).model
    with torch.no_grad():
        spread = model(images).std()
        assert (onnx_runner(output / "model.int8.onnx")(images) - model(images)).abs().max() < spread


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limits", "accuracy_drop"], "a limit is NAME=VALUE, such as accuracy_drop=0.5, not 'accuracy_drop'"),
        (["--limits", "macs=3"], "the limits are accuracy_drop, stored_bytes, milliseconds"),
        (["--calibration-images", "0"], "calibration_images are at least 1, not 0"),
        (
            ["--limits", "stored_bytes=10", "--calibration-images", "8"],
            "more than stored_bytes=10: take a smaller network",
        ),
    ],
)
def test_bad_input_ends_in_one_line(subnet, command, tmp_path, arguments, message):
    result = command("quantise", "--subnet", subnet, "--output", tmp_path / "out", *arguments)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_subnet_is_trained_for_int8(subnet, command, tmp_path):
    output = tmp_path / "tuned"
    few = ["--holdout", "0.9", "--epochs", "1", "--eval-epochs", "0"]
    result = command("finetune", "--subnet", subnet, "--precision", "int8", *few, "--output", output)
    assert result.returncode == 0, result.stderr
    assert f"{output / 'model.int8.onnx'}: " in result.stdout
    weight = load_subnet(output).model.layer1[0].conv1.weight.detach()
    assert torch.equal(weight, Bits(weight_bits())(weight))
    result = command("finetune", "--subnet", subnet, "--precision", "int4", *few, "--output", tmp_path / "other")
    assert result.returncode == 2
