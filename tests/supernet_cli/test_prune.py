"""Channels taken from a subnet by the command line."""

import json

import pytest

from supernet.artifacts.runs import open_data
from supernet.artifacts.subnet import Subnet, load_subnet, save_subnet
from supernet.artifacts.subnet_config import SubnetConfig
from supernet.families import FAMILIES
from supernet.training.recipes import RECIPES


@pytest.fixture(scope="module")
def subnet(tmp_path_factory):
    """An untrained network for digits."""
    data = open_data(RECIPES["digits"]().data, 0)
    family = FAMILIES["mobilenet_v3_micro"](num_classes=10)
    arch = family.space.smallest
    folder = tmp_path_factory.mktemp("subnets") / "plain"
    config = SubnetConfig.of("mobilenet_v3_micro", "{}", arch, data)
    save_subnet(folder, Subnet(family.build(arch).eval(), config), onnx=False)
    return folder


def test_a_subnet_is_pruned_to_limits_and_timed(subnet, command, tmp_path):
    output = tmp_path / "pruned"
    whole = load_subnet(subnet).config.facts
    limit = f"macs={0.6 * whole['macs']}"
    few = ["--images", "40", "--step", "4", "--importance", "activations", "--no-onnx"]
    result = command("prune", "--subnet", subnet, "--output", output, "--limits", limit, "milliseconds=100", *few)
    assert result.returncode == 0, result.stderr
    model, config = load_subnet(output)
    assert 0.3 * whole["macs"] < config.facts["macs"] <= 0.6 * whole["macs"]
    found = json.loads((output / "pruning.json").read_text())
    assert found["step"] == 4
    assert model.conv_stem.out_channels == found["channels"]["conv_stem"]
    assert found["on_test_images"]["before"]["macs"] == whole["macs"]
    assert found["time_ratio"]["verdict"] in result.stdout
    again = command("prune", "--subnet", subnet, "--output", output)
    assert "holds a subnet already; name another folder" in again.stderr


def test_the_sensitivity_of_layers_is_drawn(subnet, command, tmp_path):
    picture = tmp_path / "sensitivity.svg"
    result = command("prune", "--subnet", subnet, "--sensitivity", picture, "--images", "10")
    assert result.returncode == 0, result.stderr
    assert "conv_stem" in picture.read_text()
    assert "of the held-out images right" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limits", "macs"], "a limit is NAME=VALUE, such as macs=1e6, not 'macs'"),
        (["--limits", "bytes=3"], "the limits are macs, parameters and milliseconds"),
        (["--limits", "macs=3", "--step", "8"], "no threshold of importance meets macs <= 3"),
        (["--step", "0"], "images and step are at least 1, not 256 and 0"),
        (["--sensitivity", "x.svg"], "say one of --output"),
    ],
)
def test_bad_input_ends_in_one_line(subnet, command, tmp_path, arguments, message):
    result = command("prune", "--subnet", subnet, "--output", tmp_path / "out", *arguments)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
