"""`supernet train-standalone`, `finetune`, `train-netaug` and `evaluate`."""

import dataclasses
import json
from pathlib import Path

import pytest
import timm
import torch

from distill.objective import Objective
from supernet.artifacts.formats import RUN
from supernet.artifacts.subnet import Subnet, load_subnet, save_subnet
from supernet.evaluation import accuracy
from supernet.training.data import DataConfig, load_data
from supernet.training.standalone import ModelJob

SHORT = ["--epochs", "1", "--warmup-epochs", "0", "--batch-size", "8", "--eval-epochs", "0"]
FEW = ["--holdout", "0.97"]  # 43 images to train on


@pytest.fixture(scope="module")
def folder(command, tmp_path_factory):
    """A supernet's short run, and a subnet of it."""
    folder = tmp_path_factory.mktemp("models")
    for words in (
        ["train", *SHORT, *FEW, "--output", folder / "run"],
        ["extract", "--run", folder / "run", "--smallest", "--output", folder / "subnet", "--no-onnx"],
    ):
        result = command(*words)
        assert result.returncode == 0, result.stderr
    return folder


def test_a_subnets_architecture_is_trained_from_scratch_with_the_runs_settings(command, folder, tmp_path):
    result = command(
        "train-standalone", "--subnet", folder / "subnet", "--run", folder / "run", "--output", tmp_path / "model",
        "--no-onnx",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (model, config), (_, subnet) = load_subnet(tmp_path / "model"), load_subnet(folder / "subnet")
    assert config.arch == subnet.arch
    job = json.loads((tmp_path / "model" / "training" / "config.json").read_text())["job"]
    settings = json.loads((folder / "run" / "config.json").read_text())["job"]
    assert job["data"] == settings["data"]
    assert job["train"].items() <= settings["train"].items()
    test = load_data(DataConfig(**settings["data"]))
    expected = accuracy(model, test.evaluation_batches(test.test, config.input_size[-1]))
    assert config.facts["accuracy"] == pytest.approx(expected)
    for name, right in (("subnet", subnet.facts["accuracy"]), ("model", expected)):
        assert f"{name}: {right:.2%} of the test images are right" in result.stdout
    again = command("train-standalone", *SHORT, "--output", tmp_path / "model")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "holds a model already" in again.stderr


def test_images_of_ones_own_are_trained_and_tested_on_and_gone_on_with(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "from supernet.training.data import DataConfig, open_images\n\n\n"
        "def images():\n    return open_images(DataConfig(mean=(0.3,) * 3, std=(0.2,) * 3, holdout=0.97))\n"
    )
    own = ["--dataset", "own.py:images"]
    result = command("train-standalone", *own, *SHORT, "--output", "model", "--no-onnx")
    assert result.returncode == 0, result.stderr
    assert "of the test images are right" in result.stdout
    (tmp_path / "model" / "config.json").unlink()  # as if stopped before it was written
    result = command("train-standalone", "--output", "model", "--resume", "--no-onnx")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "is of the dataset own.py:images: code of your own" in result.stderr
    result = command("train-standalone", *own, "--output", "model", "--resume", "--no-onnx")
    assert result.returncode == 0, result.stderr
    assert load_subnet(tmp_path / "model").config.mean == (0.3, 0.3, 0.3)


def test_a_teacher_is_not_taken_for_its_space(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = "supernet.families:mobilenet_v3_micro"
    job = ModelJob(space, teacher="nobody", teacher_space=space, objective=Objective(kl=1.0))
    content = {"format": RUN.label, "job": dataclasses.asdict(job), "dataset_sha256": None}
    content |= {"family_arguments": {"num_classes": 10}, "held_out": 1}
    (tmp_path / "model" / "training").mkdir(parents=True)
    (tmp_path / "model" / "training" / "config.json").write_text(json.dumps(content))
    resumed = ["train-standalone", "--output", "model", "--resume", "--space", space, "--teacher", "nobody"]
    assert "timm has no model 'nobody'" in command(*resumed).stderr
    elsewhere = "supernet.families.mobilenets:mobilenet_v3_micro"
    result = command(*resumed, "--teacher-space", elsewhere)
    assert "timm has no model 'nobody'" in result.stderr


def test_a_subnet_goes_on_with_images_of_ones_own_in_place_of_a_runs(command, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "from supernet.training.data import DataConfig, open_images\n\n\n"
        "def images():\n    return open_images(DataConfig(mean=(0.3,) * 3, std=(0.2,) * 3, holdout=0.97))\n"
    )
    own = ["--run", folder / "run", "--dataset", "own.py:images"]  # the run has settings of digits
    result = command("finetune", "--subnet", folder / "subnet", *own, *SHORT, "--output", "tuned", "--no-onnx")
    assert result.returncode == 0, result.stderr
    assert load_subnet(tmp_path / "tuned").config.mean == (0.3, 0.3, 0.3)
    result = command("finetune", "--subnet", "tuned", *own, *SHORT, "--output", "again", "--no-onnx")
    assert result.returncode == 0, result.stderr
    result = command("evaluate", "tuned", "again", *own, "--no-latency")
    assert result.returncode == 0, result.stderr


def test_a_timm_student_learns_from_a_subnet_by_several_losses(command, folder, tmp_path):
    result = command(
        "train-standalone", "--model", "mobilenetv3_small_050", "--input-size", "32", *SHORT, *FEW, "--no-onnx",
        "--teacher", folder / "subnet", "--kl", "1", "--attention", "1000", "--labels", "0.5", "--layers",
        "blocks.1", "blocks.2", "--output", tmp_path,
    )  # fmt: skip
    assert result.returncode == 2
    assert "attention maps are compared position by position" in result.stderr
    result = command(
        "train-standalone", "--model", "mobilenetv3_small_050", "--input-size", "32", *SHORT, *FEW, "--no-onnx",
        "--teacher", folder / "subnet", "--kl", "1", "--similarity", "3000", "--labels", "0.5", "--output",
        tmp_path / "student",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    metrics = (tmp_path / "student" / "training" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(metrics[-1])["losses"].keys() == {"labels", "kl", "similarity"}
    timm.create_model("mobilenetv3_small_050", num_classes=10).load_state_dict(
        load_subnet(tmp_path / "student").model.state_dict()
    )


def test_a_model_and_its_peers_teach_each_other(command, folder, tmp_path):
    result = command(
        "train-standalone", "--model", "mobilenetv3_small_050", "--input-size", "32", *SHORT, *FEW, "--no-onnx",
        "--mutual", "1", "--peers", folder / "subnet", "--output", tmp_path / "model",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    timm.create_model("mobilenetv3_small_050", num_classes=10).load_state_dict(
        load_subnet(tmp_path / "model").model.state_dict()
    )
    peer = tmp_path / "model" / "training" / "peers" / "1-subnet"
    assert load_subnet(peer).config.arch == load_subnet(folder / "subnet").config.arch
    assert result.stdout.count("of the test images are right") == 2
    assert f"{peer}: " in result.stdout
    metrics = (tmp_path / "model" / "training" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(metrics[-1])["losses"].keys() == {"labels", "mutual"}


def test_a_subnet_is_tuned_gently_and_evaluated_beside_others(command, folder, tmp_path):
    tuned = tmp_path / "tuned"
    result = command(
        "finetune", "--subnet", folder / "subnet", "--run", folder / "run", "--teacher", folder / "subnet",
        "--kl", "1", "--output", tuned, "--no-onnx",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    job = json.loads((tuned / "training" / "config.json").read_text())["job"]
    assert job["start"] == str(folder / "subnet")
    assert job["train"]["lr"] == pytest.approx(0.04)  # the recipe's is 0.4
    before, after = load_subnet(folder / "subnet").model, load_subnet(tuned).model
    assert not torch.equal(before.conv_stem.weight, after.conv_stem.weight)

    torch.save(timm.create_model("resnet10t", num_classes=10).state_dict(), tmp_path / "resnet.pth")
    result = command(
        "evaluate", folder / "subnet", tuned, f"resnet10t={tmp_path / 'resnet.pth'}", "--input-size", "32",
        "--workers", "0", "--json", tmp_path / "figures.json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = {Path(row["network"]).name: row for row in json.loads((tmp_path / "figures.json").read_text())["rows"]}
    for name, directory in (("subnet", folder / "subnet"), ("tuned", tuned)):
        facts = load_subnet(directory).config.facts
        assert rows[name]["top1"] == pytest.approx(facts["accuracy"])
        assert rows[name]["macs"] == facts["macs"]
        assert rows[name]["top1"] <= rows[name]["top5"] <= 1
    assert rows["resnet.pth"]["parameters"] == 4927618
    assert all(row["latency_ms"] > 0 and 0 <= row["calibration_error"] <= 1 for row in rows.values())


def test_a_tiny_model_is_augmented_and_goes_on_where_it_stopped(command, folder, tmp_path):
    arguments = ["train-netaug", "--output", tmp_path / "model", "--no-onnx"]
    few = ["--expansions", "1", "2", "--widths", "1", "1.5", "--calibration-images", "40"]
    result = command(*arguments, "--subnet", folder / "subnet", *SHORT, *FEW, *few)
    assert result.returncode == 0, result.stderr
    weights = load_subnet(tmp_path / "model").model.state_dict()
    for path in (tmp_path / "model").glob("*.*"):
        path.unlink()
    result = command(*arguments, "--resume")
    assert result.returncode == 0, result.stderr
    model, config = load_subnet(tmp_path / "model")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert config.arch == load_subnet(folder / "subnet").config.arch


def test_weights_of_another_network_and_classes_of_another_order_end_in_one_line(command, folder, tmp_path):
    torch.save(timm.create_model("test_vit", num_classes=10).state_dict(), tmp_path / "vit.pth")
    model, config = load_subnet(folder / "subnet")
    other = dataclasses.replace(config, classes=config.classes[::-1])
    save_subnet(tmp_path / "reversed", Subnet(model, other), onnx=False)
    for network, message in (
        (f"test_resnet={tmp_path / 'vit.pth'}", "does not fit ResNet: "),
        (tmp_path / "reversed", "tells other classes apart: 9, 8, 7, 6, 5, ... (10), where"),
    ):
        result = command("evaluate", network, "--input-size", "32", "--workers", "0")
        assert result.returncode == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune", "--output", "out"], "say which subnet to train on"),
        (["train-standalone", "--model", "resnet19", "--output", "out"], "timm has no model 'resnet19'"),
        (["train-standalone", "--peers", "resnet19", "--mutual", "1", "--output", "out"], "timm has no model"),
        (["train-standalone", "--recipe", "cifar100", "--output", "out"], "there is no recipe 'cifar100'"),
        (["evaluate", "--run", "nowhere", "subnet"], "nowhere is no directory of a training run"),
        (["evaluate"], "say which networks to evaluate"),
        (
            ["evaluate", "resnet18", "--recipe", "cifar10", "--root", "/nowhere"],
            "no images at root '/nowhere': say with --root where they lie now",
        ),
    ],
)
def test_bad_input_ends_in_one_line(command, arguments, message):
    result = command(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
