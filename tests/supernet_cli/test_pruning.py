"""Structured pruning from the command line, as the README has it, on a small model and few digits."""

import json

import timm
import torch

from supernet.artifacts.subnet import load_subnet


def test_a_pretrained_model_is_pruned_to_a_limit(command, tmp_path):
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_efficientnet", num_classes=10).state_dict(), weights)
    options = {"name": "test_efficientnet", "pretrained": str(weights), "input_size": 32}
    run, subnet = tmp_path / "run", tmp_path / "subnet"
    short = ["--dataset", "digits", "--epochs", "1", "--warmup-epochs", "0", "--holdout", "0.95", "--batch-size", "16"]
    trained = command(
        "train", "--recipe", "prune", "--space-options", json.dumps(options), "--output", run,
        "--workers", "0", "--eval-epochs", "0", "--calibration-images", "40", *short,
    )  # fmt: skip
    few = ["--evaluations", "4", "--population", "4", "--images", "40"]
    searched = command("search", "--run", run, "--limits", "macs=8e5", *few)
    extracted = command("extract", "--run", run, "--history", run / "search.jsonl", "--output", subnet, "--no-onnx")
    assert [result.returncode for result in (trained, searched, extracted)] == [0, 0, 0]
    model, config = load_subnet(subnet)
    assert type(model) is timm.models.EfficientNet
    assert 0 < config.facts["macs"] <= 8e5
    assert config.facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
