"""The latency commands from end to end, in this process: measure, fit, predict, compare."""

import csv
import io
import json
import sys

import numpy as np
import pytest

from predictors.measuring import energy, memory
from search.run import load_predictors, make_problem
from search.settings import SearchJob
from supernet.families import FAMILIES

FAMILY = FAMILIES["mobilenet_v3_micro"](num_classes=10)
SPACE = FAMILY.space
MEASURE = ["--family", "mobilenet_v3_micro", "--num-classes", "10", "--subnets", "10", "--rounds", "1"]


@pytest.fixture(scope="module")
def folder(command, tmp_path_factory):
    """A folder with the predictors of two devices; energy and peak memory are by stand-ins for what measures them."""
    folder = tmp_path_factory.mktemp("latency")
    measure = ["measure-latency", *MEASURE, "--output", folder, "--name", "here", "--runtime", "torch"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(energy, "meter", lambda device: 2.0)
        patch.setattr(energy, "energy_mj", lambda timer, by: by * float(np.median(timer(3))))
        patch.setattr(
            memory, "peak_memory_bytes", lambda model, device, example: 8 * sum(p.numel() for p in model.parameters())
        )
        measured = command(*measure, "--further", "energy_mj", "peak_memory_bytes")
    fitted = command(
        "fit-latency", *MEASURE[:4], "--measurements", folder / "here/measurements.csv", "--name", "there",
        "--sources", folder / "here", "--output", folder,
    )  # fmt: skip
    assert (measured.returncode, fitted.returncode) == (0, 0)
    assert "Expected error of a prediction of the peak memory" in measured.stdout
    assert "10 measurements of the energy" in fitted.stdout
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
    assert "For there, " in compared.stdout
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


def test_further_costs_are_predicted_and_limit_a_search(command, folder):
    arch = SPACE.largest
    result = command("predict-latency", "--folder", folder, "--device", "here", "--arch", arch.to_json())
    answer = json.loads(result.stdout)
    assert list(answer) == ["latency_ms", "standard_error_ms", "energy_mj", "peak_memory_bytes", "arch"]
    assert answer["peak_memory_bytes"] == pytest.approx(8 * FAMILY.parameters(arch), rel=0.3)
    limits = {"here:energy_mj": 1e9, "here:peak_memory_bytes": 8.0 * FAMILY.parameters(SPACE.smallest) * 1.5}
    predictors = load_predictors([folder / "here"], FAMILY, limits)
    assert list(predictors) == ["here", *limits]
    problem = make_problem(SearchJob(limits=limits), FAMILY, predictors)
    assert problem.objectives == ("accuracy", "here")  # energy is limited, and not traded off unless that is said
    small, large = problem.violation(problem.price([SPACE.smallest, SPACE.largest]))
    assert small <= 1 < large
    with pytest.raises(ValueError, match="a limit on 'here:energy_mj', which is no cost and no device"):
        make_problem(SearchJob(limits=limits), FAMILY, load_predictors([folder / "here"], FAMILY))


def test_measurements_with_further_costs_give_predictors_of_these(folder):
    assert sorted(path.name for path in (folder / "there").iterdir()) == [
        "device.json", "energy_mj.json", "peak_memory_bytes.json", "predictor.json",
    ]  # fmt: skip


def test_energy_that_cannot_be_measured_is_one_line(command, tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    result = command("measure-latency", *MEASURE, "--output", tmp_path, "--runtime", "torch", "--further", "energy_mj")
    assert result.returncode == 2
    assert "energy cannot be measured: there is no counter" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_another_device_of_the_same_name_is_refused(command, folder):
    result = command("measure-latency", *MEASURE, "--output", folder, "--name", "here", "--runtime", "onnxruntime")
    assert result.returncode == 2
    assert "holds measurements with runtime torch, not onnxruntime" in result.stderr


def test_measurements_of_another_family_are_refused(command, folder):
    other = ["--family", "ofa_mobilenet_v3", *MEASURE[2:], "--output", folder, "--name", "here"]
    result = command("measure-latency", *other, "--runtime", "torch")
    assert result.returncode == 2
    assert "measurements.csv, line 2: " in result.stderr
