import json
import shutil
import sys

import pytest
import safetensors.torch
import timm
import torch
from timm.models import save_for_hf
from torch import nn

from supernet.artifacts.runs import Job, Run, load_run, read_family, run_job
from supernet.artifacts.subnet import (
    Subnet,
    SubnetConfig,
    export_subnet,
    load_subnet,
    onnx_difference,
    save_subnet,
    take_out,
)
from supernet.artifacts.weights import read_weights
from supernet.families import FAMILIES, Family
from supernet.families.named import make_family
from supernet.families.timm_models import self_contained
from supernet.space import SearchSpace
from supernet.training.data import DataConfig, ImageData, load_data
from supernet.training.execution import Execution
from supernet.training.recipes import digits
from supernet.training.step import TrainConfig
from supernet.views import View


@pytest.fixture(scope="module")
def run():
    job = digits()
    data = load_data(job.data)
    family = job.family(data.family_arguments)
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


def test_the_onnx_file_says_what_its_numbers_mean(run, saved):
    onnxruntime = pytest.importorskip("onnxruntime")
    directory, subnet = saved
    session = onnxruntime.InferenceSession(str(directory / "model.onnx"), providers=["CPUExecutionProvider"])
    said = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert said["classes"] == list(run.data.classes)
    assert said["input_size"] == [3, 24, 24]
    assert (said["mean"], said["std"]) == (list(run.data.config.mean), list(run.data.config.std))
    assert said["arch"] == subnet.config.arch


def test_the_onnx_file_computes_the_same_for_any_batch(run, saved):
    pytest.importorskip("onnxruntime")
    directory, subnet = saved
    for count in (1, 7):
        images = run.data.images(run.data.test, 24, count)[0]
        assert onnx_difference(directory, subnet.model, images) < 1e-5


def test_the_other_files_are_written_and_checked_on_real_images(run, saved):
    directory, subnet = saved
    images = run.data.images(run.data.test, 24, 60)[0]
    found = export_subnet(directory, subnet, images)
    assert set(found) == {"model.onnx", "model.pt2"}
    assert all((directory / name).exists() for name in found)
    assert max(found["model.onnx"].difference, found["model.pt2"].difference) < 1e-5


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
    with pytest.raises(ValueError, match=r"model\.safetensors was changed or damaged"):
        load_subnet(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"space": "unknown"}))
    with pytest.raises(ValueError, match="there is no search space 'unknown'"):
        load_subnet(tmp_path)


@pytest.fixture
def source(tmp_path):
    """A folder of timm's, whose configuration says more than a name would."""
    torch.manual_seed(0)
    options = {"channels": (8, 16, 24, 32), "global_pool": "max"}
    model = timm.create_model("test_resnet", num_classes=10, **options)
    model.pretrained_cfg["mean"] = (0.1, 0.2, 0.3)
    save_for_hf(model, tmp_path / "source", model_args=options, safe_serialization=True)
    return tmp_path / "source", model


def test_weights_of_which_a_byte_changed_are_refused(saved, tmp_path):
    directory, _ = saved
    shutil.copytree(directory, tmp_path / "subnet")
    path = tmp_path / "subnet" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    with pytest.raises(ValueError, match=r"model\.safetensors was changed or damaged after it was saved"):
        load_subnet(tmp_path / "subnet")
    config = json.loads((tmp_path / "subnet" / "config.json").read_text())
    del config["weights_sha256"]
    (tmp_path / "subnet" / "config.json").write_text(json.dumps(config | {"format": 3}))  # from before there were any
    load_subnet(tmp_path / "subnet")


@pytest.mark.parametrize("space", ["timm", "from_timm"])
def test_what_a_subnet_needs_is_in_its_folder(source, tmp_path, space):
    folder, _ = source
    options = json.dumps({"name": f"local-dir:{folder}", "pretrained": True, "input_size": 32})
    family = make_family(space, options, {"num_classes": 10})
    arch = family.space.smallest
    data = ImageData(None, None, None, tuple("0123456789"), DataConfig())
    subnet = Subnet(family.supernet().extract(arch).eval(), SubnetConfig.of(space, options, arch, data))
    save_subnet(tmp_path / "subnet", subnet, onnx=False)
    shutil.rmtree(folder)
    moved = (tmp_path / "subnet").rename(tmp_path / "moved")
    loaded = load_subnet(moved)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.model(images), subnet.model(images))
    assert loaded.config == subnet.config
    assert str(tmp_path) not in (moved / "config.json").read_text()
    with pytest.raises(ValueError, match="cannot read the configuration of 'local-dir:"):
        make_family(space, options, {"num_classes": 10})


def test_options_without_a_folder_or_a_file_stay_as_they_are(tmp_path):
    for space, options in (
        ("timm", '{"name":  "resnet18.a1_in1k", "pretrained": true}'),
        ("mobilenet_v3_micro", '{"name": "local-dir:x"}'),
    ):
        assert self_contained(space, options) == options
    options = json.dumps({"name": "resnet18", "pretrained": str(tmp_path / "weights.pth"), "width": [1.0]})
    assert json.loads(self_contained("from_timm", options)) == {"name": "resnet18", "width": [1.0]}


def test_a_finished_run_needs_neither_the_folder_nor_the_file_that_it_started_from(source, tmp_path):
    folder, model = source
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    data = DataConfig(holdout=0.97)
    train = TrainConfig(epochs=1, batch_size=8)
    options = {"name": f"local-dir:{folder}", "pretrained": str(tmp_path / "weights.pth"), "input_size": 32}
    run_job(Job("from_timm", json.dumps(options), data, train, Execution(workers=0, eval_epochs=0)), tmp_path / "run")
    shutil.rmtree(folder)
    (tmp_path / "weights.pth").unlink()
    run = load_run(tmp_path / "run")
    arch = run.family.space.smallest
    subnet = take_out(run, arch, calibration_images=20)
    save_subnet(tmp_path / "subnet", subnet, onnx=False)
    assert load_subnet(tmp_path / "subnet").config.arch == dict(arch)
    assert read_family(tmp_path / "run").macs(arch) == run.family.macs(arch)


def test_a_damaged_subnet_says_what_is_missing(saved, tmp_path):
    save_subnet(tmp_path, saved[1], onnx=False)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    name = "conv_stem.weight"
    del weights[name]
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"weights_sha256": None}))
    with pytest.raises(ValueError, match=rf"model\.safetensors does not fit .* are missing, the first '{name}'"):
        load_subnet(tmp_path)


def test_a_tied_tensor_is_in_the_file_once_and_tied_when_it_is_loaded(run, tmp_path, monkeypatch):
    def build(arch, drop_rate=0.0, drop_path_rate=0.0):
        layers = [nn.Flatten(), *(nn.Linear(3, 3) for _ in range(3))]
        layers[2].weight = layers[1].weight
        return nn.Sequential(*layers)

    def views(arch):
        return {"3.weight": View("1.weight")} if arch["source"] == "shared" else {}

    space = SearchSpace({"source": ("own", "shared")})
    family = Family(space, build, num_classes=3, input_size=1, views=views)
    monkeypatch.setitem(FAMILIES, "tied", lambda num_classes: family)
    model = family.supernet().extract(space.largest).eval()
    assert model[3].weight is model[2].weight is model[1].weight
    config = SubnetConfig(
        "tied",
        "{}",
        {"source": "shared"},
        ("a", "b", "c"),
        (3, 1, 1),
        (0.0,) * 3,
        (1.0,) * 3,
        "bilinear",
        1.0,
        {"num_classes": 3},
    )
    save_subnet(tmp_path, Subnet(model, config), onnx=False)
    path = tmp_path / "model.safetensors"
    stored = safetensors.torch.load_file(path)
    assert sorted(stored) == ["1.bias", "1.weight", "2.bias", "3.bias"]
    # a builder that ties less than before changes nothing
    monkeypatch.setitem(FAMILIES, "tied", lambda num_classes: Family(space, build, num_classes=3, input_size=1))
    loaded = load_subnet(tmp_path).model
    assert loaded[3].weight is loaded[2].weight is loaded[1].weight
    images = torch.randn(2, 3, 1, 1)
    assert torch.equal(loaded(images), model(images))
    weights = read_weights(path)
    assert weights.keys() == model.state_dict().keys()
    assert torch.equal(weights["3.weight"], model[1].weight)
