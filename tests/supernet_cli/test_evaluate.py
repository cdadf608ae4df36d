"""What `supernet evaluate` writes of classifiers' answers, and what it says of two, of int8 and of spoilt images."""

import csv
import dataclasses
import json
import re
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from search.certainty import mcnemar
from supernet.answers.answers import Answers, quality
from supernet.artifacts.export import export_onnx
from supernet.artifacts.onnx_network import load_onnx
from supernet.artifacts.subnet import Subnet, SubnetConfig, load_subnet, save_subnet
from supernet.families.named import make_family
from supernet.training.data import DataConfig, load_data
from supernet_cli.evaluate import Pair, paired, table
from supernet_cli.robustness import robustness
from tests.small import SPACE


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Two subnets of digits with weights as they are drawn."""
    folder = tmp_path_factory.mktemp("evaluate")
    data, family = load_data(DataConfig()), make_family(SPACE, "{}", {"num_classes": 10})
    for seed, name in enumerate(("one", "other")):
        torch.manual_seed(seed)
        model = family.build(family.space.smallest).eval()
        config = SubnetConfig.of(SPACE, "{}", family.space.smallest, data)
        save_subnet(folder / name, Subnet(model, config), onnx=False)
    return folder


def test_answers_are_written_and_two_networks_compared(command, networks, tmp_path, monkeypatch):
    monkeypatch.chdir(networks)
    result = command(
        "evaluate", "one", "other", "--space", SPACE, "--workers", "0", "--no-latency", "--int8", "--errors", "7",
        "--robustness", "--robustness-images", "12", "--output", tmp_path, "--json", tmp_path / "figures.json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    document = json.loads((tmp_path / "figures.json").read_text())
    assert re.search(r"other: .*(above|below).* p = ", result.stdout)
    (pair,) = document["paired"]
    first, second = document["rows"]
    assert pair["difference"] == pytest.approx(second["top1"] - first["top1"])
    assert 0 <= first["int8_agreement"] <= 1
    assert first["robustness"]["images"] == 12
    for row in document["rows"]:
        folder = tmp_path / row["network"]
        classes = list(csv.DictReader((folder / "classes.csv").read_text().splitlines()))
        confusion = list(csv.reader((folder / "confusion.csv").read_text().splitlines()))
        images = sum(int(own["images"]) for own in classes)
        assert images == 360
        assert sum(int(own["right"]) for own in classes) / images == pytest.approx(row["top1"])
        assert [int(line[1 + index]) for index, line in enumerate(confusion[1:])] == [
            int(own["right"]) for own in classes
        ]
        bins = list(csv.DictReader((folder / "reliability.csv").read_text().splitlines()))
        gaps = sum(int(b["images"]) * abs(float(b["accuracy"]) - float(b["confidence"])) for b in bins)
        assert gaps / images == pytest.approx(row["calibration_error"])
        page = (folder / "errors.html").read_text()
        assert page.count("<figure>") == page.count("data:image/jpeg;base64,") == 7
        assert f"{images - round(row['top1'] * images)} of 360 images are answered wrongly" in page
        assert {path.name for path in folder.glob("*.svg")} == {"confusion.svg", "reliability.svg"}


def test_an_onnx_file_is_worth_what_its_folder_is(command, networks, tmp_path, monkeypatch):
    monkeypatch.chdir(networks)
    subnet = load_subnet("one", space=SPACE)
    example, said = subnet.config.example(), subnet.config.metadata()
    export_onnx(subnet.model, tmp_path / "one.onnx", example, names=subnet.config, dynamic_batch=True, metadata=said)
    file = f"{tmp_path}/one.onnx"
    result = command(
        "evaluate", "one", file, "--space", SPACE, "--workers", "0", "--output", "found", "--errors", "0",
        "--json", "figures.json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    document = json.loads(Path("figures.json").read_text())
    own, of_file = document["rows"]
    for name in ("resolution", "top1", "top5", "macs", "parameters"):
        assert own[name] == of_file[name]
    assert of_file["calibration_error"] == pytest.approx(own["calibration_error"], abs=1e-5)
    assert of_file["stored_bytes"] == Path(file).stat().st_size
    assert of_file["latency_ms"] > 0
    assert document["paired"][0]["difference"] == 0
    (folder,) = (path for path in Path("found").iterdir() if path.name.endswith("one.onnx"))
    assert (folder / "classes.csv").read_text() == Path("found/one/classes.csv").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--int8"], "--robustness and --int8 are not for ONNX files: take the folder of"),
        (["--runtime", "torch"], "runs by onnxruntime, not by torch: say that, or --no-latency"),
        (["--no-latency"], "tells other classes apart: a, b (2)"),
    ],
)
def test_an_onnx_file_that_does_not_suit_is_refused(command, networks, tmp_path, words, message):
    subnet = load_subnet(networks / "one", space=SPACE)
    said = {**subnet.config.metadata(), "classes": '["a", "b"]'}
    export_onnx(subnet.model, tmp_path / "one.onnx", subnet.config.example(), names=subnet.config, metadata=said)
    result = command("evaluate", tmp_path / "one.onnx", "--workers", "0", *words)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--errors", "-1"], "errors is 0 or more, robustness_images at least 1 and pgd_epsilon above 0, not -1,"),
        (["--threads", "0"], "threads and batch_size are at least 1, not 0"),
        (["--runtime", "nothere"], "no runtime 'nothere'"),
        (["--workers", "0"], "there is no ONNX file none.onnx"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(command, words, message, monkeypatch):
    monkeypatch.setattr("supernet_cli.evaluate.judge", lambda *_: pytest.fail("it began"))
    result = command("evaluate", "none.onnx", *words)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr


def test_what_a_file_does_not_say_of_its_costs_is_left_out(networks, tmp_path):
    subnet = load_subnet(networks / "one", space=SPACE)
    said = {name: value for name, value in subnet.config.metadata().items() if name not in ("macs", "parameters")}
    export_onnx(subnet.model, tmp_path / "one.onnx", subnet.config.example(), names=subnet.config, metadata=said)
    assert load_onnx(tmp_path / "one.onnx").config.facts == {}
    rows = [{"network": "a", "macs": None}, {"network": "b", "macs": 2000}]
    assert [list(column.cells) for column in table(rows, "").columns] == [["a", "b"], ["", "2"]]


def answers(right):
    """Of two classes, right or wrong as `right` says."""
    labels = torch.zeros(len(right), dtype=torch.int64)
    classes = torch.tensor([[0, 1] if own else [1, 0] for own in right])
    return Answers(labels, classes, torch.full((len(right), 2), 0.5), 2)


def test_networks_are_compared_with_the_first_by_mcnemars_test():
    right = [True] * 10 + [False] * 30
    better, same = [True] * 40, [False, *right[1:]]
    first, second = paired({"a": answers(right), "b": answers(better), "c": answers(same)})
    error = pytest.approx((0.1875 / 39) ** 0.5)  # of 30 ones and 10 zeros
    assert first == Pair("b", "a", 0.75, pytest.approx(2 * mcnemar(0, 30)), error)  # the smaller of two, by Holm
    assert second == Pair("c", "a", pytest.approx(-1 / 40), pytest.approx(mcnemar(0, 1)), pytest.approx(1 / 40))
    assert str(first).startswith("b: 75.00 points above a, p = ")
    assert str(second).startswith("c: not distinguishable from a (2.50 points below it), p = ")
    assert paired({"a": answers(right)}) == []


def test_a_column_has_one_unit():
    rows = [
        {"network": "a", "top1": 0.5, "macs": 2_500_000, "stored_bytes": 900, "robustness": {}},
        {"network": "b", "top1": 0.25, "macs": 500_000, "stored_bytes": 90, "robustness": {}},
    ]
    found = table(rows, "")
    assert [column.header for column in found.columns] == ["network", "top-1 (%)", "MACs (M)", "bytes"]
    assert [list(column.cells) for column in found.columns[1:]] == [["50.00", "25.00"], ["2.5", "0.5"], ["900", "90"]]


def test_what_is_wider_than_a_terminal_is_turned():
    measured = {"resolution": 32, "top1": 0.5, "top5": 0.75, "calibration_error": 0.25, "macs": 2000, "latency_ms": 1.5}
    rows = [{"network": f"subnets/{name}/model.int8.onnx", **measured} for name in ("one", "other")]
    text = StringIO()
    Console(file=text, width=80).print(table(rows, ""))
    assert "…" not in text.getvalue()
    found = table(rows, "")
    assert list(found.columns[0].cells) == [
        "pixels", "top-1 (%)", "top-5 (%)", "calibration error (%)", "MACs (k)", "ms",
    ]  # fmt: skip
    assert [column.header for column in found.columns[1:]] == [row["network"] for row in rows]
    assert list(found.columns[1].cells) == ["32", "50.00", "75.00", "25.00", "2", "1.5"]


class Brightest(nn.Module):
    """Tells by the red of the pixel in the middle whether it is above a half, on images from 0 to 1."""

    def __init__(self):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(10.0))

    def forward(self, images):
        logit = self.sharpness * (images[:, 0, 4, 4] - 0.5)
        return torch.stack([-logit, logit], 1)


def test_an_attack_moves_exactly_what_is_within_its_reach():
    """Of a network whose answer is a threshold, that are the images whose pixel is within epsilon of it."""
    data = load_data(DataConfig(mean=(0.0,) * 3, std=(1.0,) * 3, crop_pct=1.0))
    pixels, _ = data.images(data.test, 8, 60)
    values = pixels[:, 0, 4, 4]
    right = values > 0.5

    test = [(data.test[index][0], int(right[index])) for index in range(60)]
    data = dataclasses.replace(data, test=test, classes=("dark", "bright"))
    found = robustness(Brightest(), data, 8, 100, 40 / 255)
    assert found.images == 60
    assert found.clean == 1.0
    assert found.pgd == pytest.approx(((values - 0.5).abs() > 40 / 255).double().mean().item())
    assert 0 < found.pgd < 1
    rows = list(found.by_corruption.values())
    assert found.corrupted == pytest.approx(sum(map(sum, rows)) / sum(map(len, rows)))
    assert found.by_corruption["brightness"] == sorted(found.by_corruption["brightness"], reverse=True)


def test_spoilt_images_are_as_many_and_the_same_for_every_network(networks):
    data = load_data(DataConfig())
    subnet = load_subnet(networks / "one", space=SPACE)
    one = robustness(subnet.model, data, 24, 20, 1 / 255)
    assert one == robustness(subnet.model, data, 24, 20, 1 / 255)
    assert one.images == 20
    assert quality(subnet.model, data.evaluation_batches(data.test, 24)).top1 <= 1
