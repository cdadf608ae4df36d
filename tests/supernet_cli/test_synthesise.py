"""`supernet synthesise`: a folder that can be trained with, and goes on where it stopped."""

import json

import pytest

from supernet.artifacts.subnet import Subnet, SubnetConfig, save_subnet
from supernet.families.named import make_family
from supernet.training.data import DataConfig, load_data, open_images


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "subnet"
    data = load_data(DataConfig())
    family = make_family("mobilenet_v3_micro", "{}", data.family_arguments)
    arch = family.space.smallest
    config = SubnetConfig.of("mobilenet_v3_micro", "{}", arch, data)
    save_subnet(folder, Subnet(family.build(arch).eval(), config), onnx=False)
    return folder


def test_images_are_written_by_class_and_only_those_that_are_missing(command, teacher, tmp_path):
    words = ["synthesise", "--teacher", teacher, "--output", tmp_path / "images", "--batch-size", "20"]
    short = ["--inversion.iterations", "2", "--count"]
    result = command(*words, *short, "20")
    assert result.returncode == 0, result.stderr
    files = sorted((tmp_path / "images").rglob("*.png"))
    assert len(files) == 20
    first = {path: path.read_bytes() for path in files}
    files[3].unlink()
    result = command(*words, *short, "40")
    assert result.returncode == 0, result.stderr
    assert all(path.read_bytes() == content for path, content in first.items())
    data = open_images(DataConfig(dataset="folder", root=str(tmp_path / "images"), holdout=0.4))
    assert data.classes == tuple(json.loads((teacher / "config.json").read_text())["classes"])
    assert sum(data.count(part) for part in (data.train, data.holdout, data.test)) == 40
    result = command(*words, "--inversion.iterations", "3", "--count", "40")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "was begun with other settings (inversion.iterations=2)" in result.stderr


def test_too_few_images_are_refused(command, teacher, tmp_path):
    result = command("synthesise", "--teacher", teacher, "--output", tmp_path / "few", "--count", "19")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "at least 2 images of each of 10 classes, not 19" in result.stderr
