"""The latency commands from end to end, in this process: measure, fit, predict, compare."""

import csv
import io
import json
import sys

import pytest

from supernet.families import FAMILIES

SPACE = FAMILIES["mobilenet_v3_micro"](num_classes=10).space
MEASURE = ["--family", "mobilenet_v3_micro", "--num-classes", "10", "--subnets", "10", "--rounds", "1"]


@pytest.fixture(scope="module")
def folder(command, tmp_path_factory):
    """A folder with the predictors of two devices."""
    folder = tmp_path_factory.mktemp("latency")
    measured = command("measure-latency", *MEASURE, "--output", folder, "--name", "here", "--runtime", "torch")
    fitted = command(
        "fit-latency", *MEASURE[:4], "--measurements", folder / "here/measurements.csv", "--name", "there",
        "--sources", folder / "here", "--output", folder,
    )  # fmt: skip
    assert (measured.returncode, fitted.returncode) == (0, 0)
    return folder


def test_measuring_leaves_device_measurements_and_predictor(folder):
    assert json.loads((folder / "here/device.json").read_text())["runtime"] == "torch"
    rows = list(csv.DictReader(io.StringIO((folder / "here/measurements.csv").read_text())))
    assert sum(row["reference"] == "0" for row in rows) == 10


@pytest.mark.parametrize("way", ["--arch", "file", "standard input"])
def test_prediction(command, folder, way, tmp_path, monkeypatch):
    arch = SPACE.smallest.to_json()
    if way == "--arch":
        question = ["--arch", arch]
    else:
        (tmp_path / "archs.jsonl").write_text(arch + "\n")
        monkeypatch.setattr(sys, "stdin", io.StringIO(arch + "\n"))
        question = ["--archs", tmp_path / "archs.jsonl" if way == "file" else "-"]
    result = command("predict-latency", "--folder", folder, "--device", "here", *question)
    assert result.returncode == 0
    answer = json.loads(result.stdout)
    assert answer["latency_ms"] > 0
    assert answer["standard_error_ms"] > 0
    assert answer["arch"] == dict(SPACE.smallest)


def test_devices_are_listed_and_compared(command, folder, tmp_path):
    listed = command("predict-latency", "--folder", folder, "--list-devices")
    assert listed.returncode == 0
    assert "here" in listed.stdout
    assert "there" in listed.stdout
    plot = tmp_path / "plot.png"
    compared = command("compare-devices", "--folder", folder, "--archs", 50, "--plot", plot)
    assert compared.returncode == 0
    assert "Spearman" in compared.stdout
    assert plot.stat().st_size > 0


def test_export_only_writes_onnx_files_and_a_manifest_to_fill_in(command, tmp_path):
    target = tmp_path / "onnx"
    assert command("measure-latency", *MEASURE, "--export-only", target).returncode == 0
    rows = list(csv.DictReader(io.StringIO((target / "manifest.csv").read_text())))
    assert [row["file"] for row in rows] == sorted(path.name for path in target.glob("*.onnx"))
    text = (target / "manifest.csv").read_text()
    fit = ["fit-latency", *MEASURE[:4], "--measurements", target / "manifest.csv", "--name", "phone"]
    empty = command(*fit, "--output", tmp_path)
    assert empty.returncode == 2
    assert "manifest.csv, line 2: a latency is a positive number of milliseconds" in empty.stderr
    filled = [line + str(i / 10) if i else line for i, line in enumerate(text.splitlines())]
    (target / "manifest.csv").write_text("\n".join(filled) + "\n")
    assert command(*fit, "--output", tmp_path).returncode == 0
    assert (tmp_path / "phone/predictor.json").exists()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("measure-latency", ["--family", "resnet"], "there is no search space 'resnet'; the spaces are"),
        ("measure-latency", [], "say whose subnets: --run"),
        ("measure-latency", [*MEASURE, "--run", "nowhere"], "say whose subnets: --run"),
        ("measure-latency", ["--run", "nowhere"], "nowhere is no directory of a training run"),
        ("measure-latency", [*MEASURE, "--runtime", "abacus"], "no runtime 'abacus'; there are torch"),
        ("measure-latency", [*MEASURE, "--largest-resolution", "8"], "no resolution of at most 8 pixels"),
        ("predict-latency", ["--arch", "{}"], "name a device with --device"),
        ("predict-latency", ["--device", "nowhere", "--arch", "{}"], "no device 'nowhere' in"),
        ("predict-latency", ["--device", "here"], "either --arch or --archs"),
        ("predict-latency", ["--device", "here", "--arch", "{"], "is not JSON"),
        ("predict-latency", ["--device", "here", "--arch", '{"colour": 1}'], "this space has no choice 'colour'"),
        ("compare-devices", ["--devices", "here"], "comparing needs two devices or more, and there are 1"),
        ("compare-devices", ["--devices", "nowhere"], "no device 'nowhere'"),
        ("fit-latency", ["--family", "mobilenet_v3_micro"], "say what to fit"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command, folder, name, arguments, message):
    where = ["--folder", folder] if name in ("predict-latency", "compare-devices") else []
    result = command(name, *where, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_another_device_of_the_same_name_is_refused(command, folder):
    result = command("measure-latency", *MEASURE, "--output", folder, "--name", "here", "--runtime", "onnxruntime")
    assert result.returncode == 2
    assert "holds measurements with runtime torch, not onnxruntime" in result.stderr


def test_measurements_of_another_family_are_refused(command, folder):
    other = ["--family", "ofa_mobilenet_v3", *MEASURE[2:], "--output", folder, "--name", "here"]
    result = command("measure-latency", *other, "--runtime", "torch")
    assert result.returncode == 2
    assert "measurements.csv, line 2: " in result.stderr
