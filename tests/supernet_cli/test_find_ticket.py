"""`supernet find-ticket`: rounds, what it leaves, going on after a kill, and then in few bytes."""

import json

import pytest
import torch

from compress.container import load_compressed
from supernet.artifacts import load_subnet
from supernet.training.loop import loop
from tests.small import SPACE, small

FEW = ["--batch-size", "16", "--holdout", "0.96", "--eval-epochs", "0", "--no-onnx"]  # 57 images to train on
SHORT = ["--epochs", "1", "--warmup-epochs", "0", *FEW]
SMALL = ["--space", SPACE, "--arch", small().space.smallest.to_json()]
TICKET = [*SMALL, "--rounds", "2", "--fraction", "0.5", "--rewind-epochs", "0.5"]


def densities(model):
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    return {round((weight != 0).float().mean().item(), 2) for weight in weights if weight.numel() > 200}


def test_a_ticket_is_found_killed_resumed_and_compressed(command, tmp_path, monkeypatch):
    words = [*SHORT, *TICKET, "--checkpoint-steps", "1"]
    whole = command("find-ticket", *words, "--output", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    model = load_subnet(tmp_path / "whole", space=SPACE).model
    assert densities(model) == {0.25}
    lines = [json.loads(line) for line in (tmp_path / "whole" / "training" / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert [line["density"] for line in lines] == pytest.approx([1, 0.5, 0.25], abs=0.001)
    for line in lines:
        assert f"round {line['round']}: {line['density']:.1%}" in whole.stdout
    save, saved = loop.save_checkpoint, []

    def save_and_be_killed(*arguments):
        saved.append(save(*arguments))
        if len(saved) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", save_and_be_killed)
        assert command("find-ticket", *words, "--output", tmp_path / "killed").returncode == 130
    result = command("find-ticket", "--resume", "--space", SPACE, "--no-onnx", "--output", tmp_path / "killed")
    assert result.returncode == 0, result.stderr
    again = load_subnet(tmp_path / "killed", space=SPACE).model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
    result = command(
        "compress", "--subnet", tmp_path / "whole", "--space", SPACE, "--post-training", "--bits", "6", "--no-onnx",
        "--output", tmp_path / "ticket.compressed",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert densities(load_compressed(tmp_path / "ticket.compressed", space=SPACE).model) == {0.25}


def test_a_rewinding_after_the_end_ends_in_a_line(command, tmp_path):
    result = command("find-ticket", *SHORT, *TICKET[:-1], "7", "--output", tmp_path / "ticket")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "rewind_epochs is below the 1 epochs" in result.stderr
