"""From a run to a quantised, stored network, killed on the way."""

import json

import pytest

from supernet.artifacts.runs import load_run
from supernet.artifacts.subnet import load_subnet, save_subnet, take_out
from supernet_cli import quantise

FEW = ["--dataset", "digits", "--holdout", "0.9", "--batch-size", "16", "--workers", "0", "--eval-epochs", "0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, command):
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = json.dumps({"name": "test_efficientnet", "input_size": 32, "width": [0.5, 1.0], "depth": [1.0]})
    result = command(
        "train", "--space", "from_timm", "--space-options", options, "--output", folder, "--epochs", "1",
        "--warmup-epochs", "0", "--calibration-images", "40", *FEW,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder


def test_a_pipeline_that_was_killed_goes_on(run, command, tmp_path, monkeypatch):
    subnet, output = tmp_path / "subnet", tmp_path / "pipeline"
    trained = load_run(run)
    save_subnet(subnet, take_out(trained, trained.net.space.smallest, 40))
    arguments = ["--run", run, "--output", output, "--subnet", subnet, "--epochs", "1", "--stages", "tune", "quantise"]
    with monkeypatch.context() as patch:
        patch.setattr(quantise, "quantise", lambda arguments: (_ for _ in ()).throw(KeyboardInterrupt()))
        killed = command("pipeline", *arguments)
    assert killed.returncode == 130
    before = json.loads((output / "pipeline.json").read_text())["stages"]
    assert [stage["stage"] for stage in before] == ["extract", "tune"]
    ended = command("pipeline", *arguments)
    assert ended.returncode == 0, ended.stderr
    assert stages_of(output)[:2] == before
    check(output, ["extract", "tune", "quantise"])
    other = command("pipeline", *arguments, "--seed", "1")
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "was begun with other seed: name another folder" in other.stderr


def test_what_int8_has_to_be_trained_for_is_said(run, command, tmp_path):
    wrong = ["--tune", "int8", "--stages", "prune", "tune"]
    result = command("pipeline", "--run", run, "--output", tmp_path / "out", *wrong)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "training for int8 is seen in the stages tune and quantise: --stages lacks quantise" in result.stderr


@pytest.mark.exhaustive
def test_all_stages(run, command, tmp_path):
    output = tmp_path / "pipeline"
    few = ["--evaluations", "4", "--epochs", "1", "--bits", "6", "--prune-step", "4"]
    result = command("pipeline", "--run", run, "--output", output, *few)
    assert result.returncode == 0, result.stderr
    check(output, ["extract", "prune", "tune", "quantise", "store"])
    stages = {stage["stage"]: stage for stage in stages_of(output)}
    assert stages["store"]["bytes"] < 0.4 * stages["tune"]["bytes"]
    whole, pruned = (load_subnet(output / name).config.facts["macs"] for name in ("extract", "prune"))
    assert pruned <= 0.7 * whole
    source = output / ("extract" if stages["prune"]["left_out"] else "prune")
    assert load_subnet(output / "tune").config.facts["macs"] == load_subnet(source).config.facts["macs"]


def stages_of(output):
    return json.loads((output / "pipeline.json").read_text())["stages"]


def check(output, names):
    """Each stage has its figures, and is left out where they say so."""
    assert [stage["stage"] for stage in stages_of(output)] == names
    assert (output / "pipeline.svg").exists()
    for stage in stages_of(output):
        if stage["accuracy"] is None:  # no way to quantise within the limit
            assert stage["stage"] == "quantise"
            assert "within the limits the drop is" in stage["left_out"]
            continue
        assert stage["bytes"] == (output / stage["folder"] / stage["file"]).stat().st_size
        assert stage["milliseconds"] > 0
        slow = stage["verdict"] == "slower" or (stage["stage"] == "prune" and stage["verdict"] != "faster")
        assert (stage["left_out"] is not None) == (slow and stage["stage"] not in ("extract", "tune"))


@pytest.mark.exhaustive
def test_what_is_trained_for_int8_is_what_is_quantised(run, command, tmp_path):
    output = tmp_path / "pipeline"
    result = command(
        "pipeline", "--run", run, "--output", output, "--evaluations", "4", "--epochs", "1",
        "--tune", "int8", "--stages", "tune", "quantise",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    record = json.loads((output / "pipeline.json").read_text())
    assert [stage["file"] for stage in record["stages"]] == ["model.onnx", "model.onnx", "model.int8.onnx"]
    tuned, quantised = (output / name / "model.int8.onnx" for name in ("tune", "quantise"))
    assert tuned.read_bytes() == quantised.read_bytes()
