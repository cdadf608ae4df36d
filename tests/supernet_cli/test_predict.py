"""`supernet predict`: photographs of every mode, alone and in folders, and files that are none."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from supernet.artifacts.export import export_onnx
from supernet.artifacts.onnx_network import load_onnx
from supernet.artifacts.subnet import Subnet, SubnetConfig, load_subnet, save_subnet
from supernet.families.named import make_family
from supernet.training.data import DataConfig, load_data
from tests.small import SPACE

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")


@pytest.fixture(scope="module")
def subnet(tmp_path_factory):
    """Of digits, with weights as they are drawn."""
    folder = tmp_path_factory.mktemp("predict") / "subnet"
    data = load_data(DataConfig())
    family = make_family(SPACE, "{}", {"num_classes": 10})
    torch.manual_seed(0)
    model = family.build(family.space.smallest).eval()
    save_subnet(folder, Subnet(model, SubnetConfig.of(SPACE, "{}", family.space.smallest, data)), onnx=False)
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "deeper").mkdir()
    y, x = np.mgrid[:40, :60]
    grey = Image.fromarray((x * 3 + y).astype(np.uint8))
    for mode in MODES:
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
        name = mode.replace(";", "")
        image.save(folder / "deeper" / f"{name}.tif" if mode == "CMYK" else folder / f"{name}.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by a quarter
    grey.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    (folder / "notes.txt").write_text("none")
    (folder / ".hidden.png").write_bytes(b"none")
    return folder


def test_every_mode_and_an_orientation_are_answered_as_the_same_picture(command, subnet, photographs, tmp_path):
    found = tmp_path / "found.csv"
    result = command(
        "predict", "--subnet", subnet, "--space", SPACE, photographs, "--csv", found, "--json", tmp_path / "found.json",
        "--batch-size", "4", "--top", "3",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = list(csv.DictReader(found.read_text().splitlines()))
    rows = {row["file"].rpartition("/")[2]: row for row in lines}
    assert len(rows) == len(MODES) + 1
    assert list(rows["L.png"]) == ["file", *(f"{n}_{k}" for k in (1, 2, 3) for n in ("class", "probability")), "error"]
    for name in ("LA.png", "RGB.png", "RGBA.png", "I16.png", "turned.png"):
        for rank in (1, 2, 3):
            assert rows[name][f"class_{rank}"] == rows["L.png"][f"class_{rank}"], name
            probabilities = [float(rows[own][f"probability_{rank}"]) for own in (name, "L.png")]
            assert probabilities[0] == pytest.approx(probabilities[1], rel=1e-6), name  # batches round apart
    document = json.loads((tmp_path / "found.json").read_text())
    assert [row["file"] for row in document["rows"]] == [row["file"] for row in lines]
    first = document["rows"][0]["classes"]
    assert [own["probability"] for own in first] == sorted((own["probability"] for own in first), reverse=True)
    assert f"{photographs / 'L.png'}: {rows['L.png']['class_1']} " in result.stdout


def test_a_file_that_is_no_image_does_not_keep_the_others_from_an_answer(command, subnet, photographs, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    result = command(
        "predict", "--subnet", subnet, "--space", SPACE, broken, photographs / "L.png", "--batch-size", "1"
    )
    assert result.returncode == 1
    assert result.stderr == "error: 1 of 2 files cannot be read as images\n"
    first, second = result.stdout.splitlines()
    assert first.startswith(f"'{broken}' cannot be read as an image: it is in no format that Pillow knows")
    assert second.startswith(f"{photographs / 'L.png'}: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jpg"], "there is no file or folder nowhere.jpg"),
        ([], "say which photographs: files or folders"),
        (["{empty}"], "there are no images in the folder"),
        (["{empty}", "--top", "0"], "top is at least 1, not 0"),
    ],
)
def test_what_cannot_be_answered_is_said_in_a_line(command, subnet, tmp_path, arguments, message):
    words = [word.format(empty=tmp_path) for word in arguments]
    result = command("predict", "--subnet", subnet, "--space", SPACE, *words)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr


def test_an_onnx_file_answers_as_the_folder_that_it_is_from(command, subnet, photographs, tmp_path):
    model, config = load_subnet(subnet, space=SPACE)
    file = tmp_path / "model.onnx"
    for dynamic in (True, False):
        export_onnx(
            model, file, config.example(), names=config, dynamic_batch=dynamic, metadata=config.metadata()
        )  # fmt: skip
        both = [tmp_path / "folder.json", tmp_path / "file.json"]
        for network, found in zip(([subnet, "--space", SPACE], [file]), both):
            result = command("predict", "--subnet", *network, photographs, "--json", found)
            assert result.returncode == 0, result.stderr
        own, ours = (json.loads(found.read_text())["rows"] for found in both)
        assert [row["file"] for row in own] == [row["file"] for row in ours]
        for one, other in zip(own, ours):
            assert [each["class"] for each in one["classes"]] == [each["class"] for each in other["classes"]]
            for a, b in zip(one["classes"], other["classes"]):
                assert a["probability"] == pytest.approx(b["probability"], abs=1e-5)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "is no ONNX file that ONNX Runtime reads"),
        ({}, "does not say its classes"),
        ({"mean": "[0.5"}, "says something else than how images are prepared"),
        ({"mean": '"grey"'}, "says something else than how images are prepared"),
    ],
)
def test_an_onnx_file_that_says_nothing_ends_in_one_line(command, subnet, photographs, tmp_path, metadata, message):
    file = tmp_path / "model.onnx"
    if metadata is None:
        file.write_bytes(b"none")
    else:
        model, config = load_subnet(subnet, space=SPACE)
        said = {**config.metadata(), **metadata} if metadata else {}
        export_onnx(model, file, config.example(), names=config, metadata=said)
    result = command("predict", "--subnet", file, photographs / "L.png")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr


def test_an_onnx_file_says_whether_images_have_several_labels(subnet, tmp_path):
    model, config = load_subnet(subnet, space=SPACE)
    several = dataclasses.replace(config, family_arguments={**config.family_arguments, "several_labels": True})
    for own in (config, several):
        file = tmp_path / "model.onnx"
        export_onnx(model, file, own.example(), names=own, metadata=own.metadata())
        assert load_onnx(file).config.several_labels == own.several_labels == (own is several)
