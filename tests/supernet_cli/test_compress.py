"""`supernet compress`: trained, not trained, killed and resumed, and what `supernet evaluate` says of the file."""

import json

import pytest
import torch

from compress.container import load_compressed, read_tensors
from supernet.artifacts import Subnet, SubnetConfig, load_subnet, save_subnet
from supernet.families.named import make_family
from supernet.training.data import DataConfig, load_data
from supernet.training.loop import loop
from tests.small import SPACE

SHORT = ["--epochs", "1", "--batch-size", "16", "--lr", "0.01", "--holdout", "0.96", "--eval-epochs", "0", "--no-onnx"]


@pytest.fixture(scope="module")
def subnet(tmp_path_factory):
    """The folder of a network that was not trained."""
    data = load_data(DataConfig("digits"))
    family = make_family(SPACE, "{}", data.family_arguments)
    config = SubnetConfig.of(SPACE, "{}", family.space.smallest, data)
    torch.manual_seed(0)
    model = family.build(family.space.smallest)
    folder = tmp_path_factory.mktemp("subnets") / "small"
    save_subnet(folder, Subnet(model, config), onnx=False)
    return folder


def compress(command, subnet, *words):
    return command("compress", "--subnet", subnet, "--space", SPACE, *words)


def test_a_network_is_pruned_clustered_tuned_stored_and_evaluated(command, subnet, tmp_path):
    output = tmp_path / "small.compressed"
    words = [*SHORT, "--density", "0.25", "--prune-rounds", "2", "--bits", "3", "--output", output]
    result = compress(command, subnet, *words)
    assert result.returncode == 0, result.stderr
    before, (model, config) = load_subnet(subnet, space=SPACE).model, load_compressed(output, space=SPACE)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            assert (weight != 0).sum() == round(0.25 * weight.numel()), name
            assert len(weight.unique()) <= 9, name
    assert sorted(path.name for path in (tmp_path / "small.training").glob("*-*")) == ["prune-1", "prune-2"]
    moved = [not torch.equal(a, b) for a, b in zip(before.state_dict().values(), model.state_dict().values())]
    assert sum(moved) > len(moved) / 2
    assert f"{output.stat().st_size:,} bytes" in result.stdout
    assert "float16" in result.stdout
    figures = tmp_path / "figures.json"
    words = ["--space", SPACE, "--no-latency", "--json", figures]
    result = command("evaluate", subnet, output, *words)
    assert result.returncode == 0, result.stderr
    plain, compressed = json.loads(figures.read_text())["rows"]
    assert compressed["stored_bytes"] == output.stat().st_size < plain["stored_bytes"] / 3
    assert compressed["top1"] == pytest.approx(config.facts["accuracy"])
    again = compress(command, subnet, *SHORT, "--output", output)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "already" in again.stderr


def test_without_training_a_network_is_rounded_alone(command, subnet, tmp_path):
    output = tmp_path / "small.compressed"
    result = compress(command, subnet, "--post-training", "--bits", "8", "--no-onnx", "--output", output)
    assert result.returncode == 0, result.stderr
    before, model = load_subnet(subnet, space=SPACE).model, load_compressed(output, space=SPACE).model
    for (name, old), new in zip(before.named_parameters(), model.parameters()):
        torch.testing.assert_close(new, old, atol=0.02 * old.abs().max().item() + 1e-3, rtol=0, msg=name)
    assert [path.name for path in tmp_path.iterdir() if any(path.glob("*"))] == []


def test_a_killed_compression_goes_on_to_the_same_file(command, subnet, tmp_path, monkeypatch):
    words = [*SHORT, "--density", "0.5", "--checkpoint-steps", "1"]
    assert compress(command, subnet, *words, "--output", tmp_path / "whole").returncode == 0
    save, saved = loop.save_checkpoint, []

    def save_and_be_killed(*arguments):
        saved.append(save(*arguments))
        if len(saved) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", save_and_be_killed)
        assert compress(command, subnet, *words, "--output", tmp_path / "killed").returncode == 130
    assert not (tmp_path / "killed").exists()
    output = ["--resume", "--space", SPACE, "--no-onnx", "--output", tmp_path / "killed"]
    result = command("compress", *output)
    assert result.returncode == 0, result.stderr
    whole, killed = read_tensors(tmp_path / "whole"), read_tensors(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert all((whole[name] == killed[name]).all() for name in whole)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--density", "0"], "density is the part"),
        (["--bits", "9"], "bits is from 1 to 8"),
        (["--prune-rounds", "0"], "prune_rounds is at least 1"),
        (["--density", "0.5", "--exclude", "stem"], "no convolution or linear layer"),
    ],
)
def test_bad_settings_end_in_a_line(command, subnet, tmp_path, words, error):
    result = compress(command, subnet, *SHORT, *words, "--output", tmp_path / "small")
    assert result.returncode == 2
    assert error in " ".join(result.stderr.replace("│", " ").split())  # in the box that tyro draws


def test_a_subnet_has_to_be_named(command, tmp_path):
    result = command("compress", "--output", tmp_path / "small")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "--subnet" in result.stderr
