"""The latency scripts from end to end, in this process: measure, fit, predict, compare."""

import csv
import io
import json
import runpy
import sys
from pathlib import Path

import pytest

from supernet.families import FAMILIES

SCRIPTS = Path(__file__).parents[2] / "scripts"
SPACE = FAMILIES["mobilenet_v3_micro"](num_classes=10).space
MEASURE = ["--family", "mobilenet_v3_micro", "--num-classes", "10", "--subnets", "10", "--rounds", "1"]


def run(name, *arguments, monkeypatch):
    """The exit code of a script."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    monkeypatch.syspath_prepend(str(SCRIPTS))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    return end.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the predictors of two devices."""
    folder = tmp_path_factory.mktemp("latency")
    with pytest.MonkeyPatch.context() as monkeypatch:
        measured = run(
            "measure_latency.py", *MEASURE, "--output", folder, "--name", "here", "--runtime", "torch",
            monkeypatch=monkeypatch,
        )  # fmt: skip
        fitted = run(
            "fit_latency.py", *MEASURE[:4], "--measurements", folder / "here/measurements.csv", "--name", "there",
            "--sources", folder / "here", "--output", folder,
            monkeypatch=monkeypatch,
        )  # fmt: skip
    assert (measured, fitted) == (0, 0)
    return folder


def test_measuring_leaves_device_measurements_and_predictor(folder):
    assert json.loads((folder / "here/device.json").read_text())["runtime"] == "torch"
    rows = list(csv.DictReader(io.StringIO((folder / "here/measurements.csv").read_text())))
    assert sum(row["reference"] == "0" for row in rows) == 10


@pytest.mark.parametrize("way", ["--arch", "file", "standard input"])
def test_prediction(folder, way, tmp_path, monkeypatch, capsys):
    arch = SPACE.smallest.to_json()
    if way == "--arch":
        question = ["--arch", arch]
    else:
        (tmp_path / "archs.jsonl").write_text(arch + "\n")
        monkeypatch.setattr(sys, "stdin", io.StringIO(arch + "\n"))
        question = ["--archs", tmp_path / "archs.jsonl" if way == "file" else "-"]
    assert run("predict_latency.py", "--folder", folder, "--device", "here", *question, monkeypatch=monkeypatch) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["latency_ms"] > 0
    assert answer["standard_error_ms"] > 0
    assert answer["arch"] == dict(SPACE.smallest)


def test_devices_are_listed_and_compared(folder, tmp_path, monkeypatch, capsys):
    assert run("predict_latency.py", "--folder", folder, "--list-devices", monkeypatch=monkeypatch) == 0
    listed = capsys.readouterr().out
    assert "here" in listed
    assert "there" in listed
    plot = tmp_path / "plot.png"
    assert run("compare_devices.py", "--folder", folder, "--archs", 50, "--plot", plot, monkeypatch=monkeypatch) == 0
    assert "Spearman" in capsys.readouterr().out
    assert plot.stat().st_size > 0


def test_export_only_writes_onnx_files_and_a_manifest_to_fill_in(tmp_path, monkeypatch, capsys):
    target = tmp_path / "onnx"
    assert run("measure_latency.py", *MEASURE, "--export-only", target, monkeypatch=monkeypatch) == 0
    rows = list(csv.DictReader(io.StringIO((target / "manifest.csv").read_text())))
    assert [row["file"] for row in rows] == sorted(path.name for path in target.glob("*.onnx"))
    text = (target / "manifest.csv").read_text()
    fit = ["fit_latency.py", *MEASURE[:4], "--measurements", target / "manifest.csv", "--name", "phone"]
    assert run(*fit, "--output", tmp_path, monkeypatch=monkeypatch) == 2
    assert "manifest.csv, line 2: a latency is a positive number of milliseconds" in capsys.readouterr().err
    filled = [line + str(i / 10) if i else line for i, line in enumerate(text.splitlines())]
    (target / "manifest.csv").write_text("\n".join(filled) + "\n")
    assert run(*fit, "--output", tmp_path, monkeypatch=monkeypatch) == 0
    assert (tmp_path / "phone/predictor.json").exists()


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("measure_latency.py", ["--family", "resnet"], "there is no search space 'resnet'; the spaces are"),
        ("measure_latency.py", [], "say whose subnets: --run"),
        ("measure_latency.py", [*MEASURE, "--run", "nowhere"], "say whose subnets: --run"),
        ("measure_latency.py", ["--run", "nowhere"], "nowhere is no directory of a training run"),
        ("measure_latency.py", [*MEASURE, "--runtime", "abacus"], "no runtime 'abacus'; there are torch"),
        ("measure_latency.py", [*MEASURE, "--largest-resolution", "8"], "no resolution of at most 8 pixels"),
        ("predict_latency.py", ["--arch", "{}"], "name a device with --device"),
        ("predict_latency.py", ["--device", "nowhere", "--arch", "{}"], "no device 'nowhere' in"),
        ("predict_latency.py", ["--device", "here"], "either --arch or --archs"),
        ("predict_latency.py", ["--device", "here", "--arch", "{"], "is not JSON"),
        ("predict_latency.py", ["--device", "here", "--arch", '{"colour": 1}'], "this space has no choice 'colour'"),
        ("compare_devices.py", ["--devices", "here"], "comparing needs two devices or more, and there are 1"),
        ("compare_devices.py", ["--devices", "nowhere"], "no device 'nowhere'"),
        ("fit_latency.py", ["--family", "mobilenet_v3_micro"], "say what to fit"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, script, arguments, message, monkeypatch, capsys):
    where = ["--folder", folder] if script in ("predict_latency.py", "compare_devices.py") else []
    assert run(script, *where, *arguments, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_another_device_of_the_same_name_is_refused(folder, monkeypatch, capsys):
    again = ["measure_latency.py", *MEASURE, "--output", folder, "--name", "here", "--runtime", "onnxruntime"]
    assert run(*again, monkeypatch=monkeypatch) == 2
    assert "holds measurements with runtime torch, not onnxruntime" in capsys.readouterr().err


def test_measurements_of_another_family_are_refused(folder, monkeypatch, capsys):
    other = ["measure_latency.py", "--family", "ofa_mobilenet_v3", *MEASURE[2:], "--output", folder, "--name", "here"]
    assert run(*other, "--runtime", "torch", monkeypatch=monkeypatch) == 2
    assert "measurements.csv, line 2: " in capsys.readouterr().err
