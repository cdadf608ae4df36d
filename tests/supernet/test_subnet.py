import json
import sys

import pytest
import torch

from supernet.data import load_data
from supernet.recipes import digits
from supernet.runs import Run
from supernet.subnet import export_subnet, load_subnet, onnx_difference, save_subnet, take_out


@pytest.fixture(scope="module")
def run():
    job = digits()
    data = load_data(job.data)
    family = job.family(data.num_classes)
    return Run(family, family.supernet().eval(), data, job)


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    subnet = take_out(run, run.family.space.smallest, calibration_images=64)
    directory = tmp_path_factory.mktemp("subnet")
    save_subnet(directory, subnet)
    return directory, subnet


def test_a_subnet_is_a_plain_module_with_batch_norm_statistics_of_its_own(run, saved):
    _, subnet = saved
    arch = run.family.space.smallest
    assert type(subnet.model) is type(run.family.build(arch))
    weights, shared = subnet.model.state_dict(), run.net.extract(arch).state_dict()
    assert list(weights) == list(shared)
    assert all(torch.equal(weights[name], shared[name]) for name in weights if "running" not in name)
    assert not any(torch.equal(weights[name], shared[name]) for name in weights if name.endswith("running_var"))


def test_a_saved_subnet_loads_as_it_was(run, saved):
    directory, subnet = saved
    loaded = load_subnet(directory)
    images = run.data.images(run.data.test, 24, 20)[0]
    assert torch.equal(loaded.model(images), subnet.model(images))
    assert loaded.config == subnet.config
    assert not loaded.model.training
    image = run.data.test[0][0]
    assert torch.equal(loaded.config.transform()(image), images[0])


def test_the_onnx_file_computes_the_same_for_any_batch(run, saved):
    pytest.importorskip("onnxruntime")
    directory, subnet = saved
    for count in (1, 7):
        images = run.data.images(run.data.test, 24, count)[0]
        assert onnx_difference(directory, subnet.model, images) < 1e-5


def test_the_other_files_are_written_and_checked_on_real_images(run, saved):
    directory, subnet = saved
    images = run.data.images(run.data.test, 24, 60)[0]
    found = export_subnet(directory, subnet, run.data.calibration_images(24, 50, 0), images)
    assert set(found) == {"model.onnx", "model.int8.onnx", "model.pt2"}
    assert all((directory / name).exists() for name in found)
    assert (
        max(found["model.onnx"].difference, found["model.pt2"].difference) < 1e-5 < found["model.int8.onnx"].difference
    )


def test_a_folder_with_a_subnet_is_not_overwritten(saved):
    directory, subnet = saved
    with pytest.raises(ValueError, match="holds a subnet already"):
        save_subnet(directory, subnet)


def test_without_onnx_the_other_files_are_written(saved, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    save_subnet(tmp_path, saved[1], onnx=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_wrong_architecture_is_named(run):
    with pytest.raises(ValueError, match=r"choice 'resolution' is one of \(24, 28, 32\), not 25"):
        take_out(run, dict(run.family.space.smallest) | {"resolution": 25})


def test_damaged_files_are_named(saved, tmp_path):
    with pytest.raises(ValueError, match=r"config\.json is no configuration of a subnet"):
        load_subnet(tmp_path)
    save_subnet(tmp_path, saved[1], onnx=False)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        load_subnet(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"space": "unknown"}))
    with pytest.raises(ValueError, match="there is no search space 'unknown'"):
        load_subnet(tmp_path)
