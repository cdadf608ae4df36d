"""`supernet export`: a model card, files for other runtimes, and a hub, for which something else stands in."""

import json
import shutil

import huggingface_hub
import pytest
import timm
import torch
import yaml

from supernet.artifacts.converters import CONVERTERS, Converter
from supernet.artifacts.subnet import Subnet, SubnetConfig, load_subnet, save_subnet
from supernet.families.named import make_family
from supernet.training.data import DataConfig, load_data


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Of digits, a model that timm knows."""
    options = json.dumps({"name": "mobilenetv3_small_050", "input_size": 32})
    family = make_family("timm", options, {"num_classes": 10})
    config = SubnetConfig.of("timm", options, family.space.largest, load_data(DataConfig()))
    config.facts["accuracy"] = 0.75
    config.found["phone latency"] = "phone: predicted 1.25 ms | <b>"
    folder = tmp_path_factory.mktemp("export") / "mine"
    save_subnet(folder, Subnet(family.build(family.space.largest).eval(), config), onnx=False)
    (folder / "private.txt").write_text("of nobody's concern")
    return folder


@pytest.fixture
def subnet(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "mine")


class Hub:
    """What was asked of `huggingface_hub.HfApi`."""

    asked: list  # (what, with what)

    def __init__(self, **options):
        pass

    def create_repo(self, repository, **options):
        Hub.asked.append(("create", repository, options))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repository}")

    def upload_folder(self, **options):
        Hub.asked.append(("upload", options))


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    Hub.asked = []
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return Hub


def test_the_card_says_what_it_is_what_it_costs_and_how_it_was_found(command, subnet, hub):
    result = command("export", "--subnet", subnet)
    assert (result.returncode, result.stderr) == (0, "")
    assert hub.asked == []  # nothing leaves this machine unasked
    _, head, body = (subnet / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "timm",
        "tags": ["neural-architecture-search", "image-classification", "timm"],
        "pipeline_tag": "image-classification",
    }
    config = load_subnet(subnet).config
    assert f"| parameters | {config.facts['parameters']:.6g} |" in body
    assert "| accuracy on test images | 0.75 |" in body
    assert r"- phone latency: phone: predicted 1.25 ms \| \<b\>" in body
    assert "10 classes apart: 0, 1, 2" in body
    assert "cropped to 32 pixels" in body
    assert f'timm.create_model("local-dir:{subnet}", pretrained=True) gives it' in result.stdout
    assert timm.create_model(f"local-dir:{subnet}", pretrained=True).num_classes == 10


def test_only_what_was_asked_for_is_pushed_and_only_our_files(command, subnet, hub):
    assert command("export", "--subnet", subnet, "--push", "me/mine").returncode == 0
    (_, repository, options), (_, uploaded) = hub.asked
    assert (repository, options) == ("me/mine", {"private": True, "exist_ok": True})
    assert uploaded["repo_id"] == "me/mine"
    assert sorted(uploaded["allow_patterns"]) == ["README.md", "config.json", "model.safetensors"]
    assert command("export", "--subnet", subnet, "--push", "me/mine", "--public").returncode == 0
    assert hub.asked[2][2]["private"] is False


def test_a_file_is_checked_and_on_the_card(command, subnet, monkeypatch):
    kept = {}

    def write(model, path, inputs):
        assert inputs[0].shape == (1, 3, 32, 32)
        kept["model"] = model
        path.write_bytes(b"written")

    def run(path, threads):
        return lambda images: kept["model"](images) + 1e-6

    monkeypatch.setitem(CONVERTERS, "litert", Converter("model.tflite", (), write, run))
    result = command("export", "--subnet", subnet, "--to", "litert")
    assert result.returncode == 0, result.stderr
    assert "model.tflite: outputs differ by at most 1." in result.stdout
    assert "| `model.tflite` | differ by at most 1." in (subnet / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "coreml"], "no format 'coreml'; there are openvino, executorch, litert"),
        (["--push", "mine"], "a repository is USER/NAME, unlike 'mine'"),
        (["--public"], "--public is of the repository that --push USER/NAME makes"),
    ],
)
def test_bad_words_end_in_one_line(command, subnet, words, message):
    result = command("export", "--subnet", subnet, *words)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
    assert not (subnet / "README.md").exists()


def test_a_hub_that_refuses_ends_in_one_line(command, subnet, monkeypatch):
    def refused(self, repository, **options):
        raise ConnectionError("no route\nto the host")

    monkeypatch.setattr(Hub, "create_repo", refused)
    result = command("export", "--subnet", subnet, "--push", "me/mine")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "me/mine cannot be pushed to: no route" in result.stderr


def test_what_timm_cannot_build_is_said(command, tmp_path):
    family = make_family("mobilenet_v3_micro", "{}", {"num_classes": 10})
    config = SubnetConfig.of("mobilenet_v3_micro", "{}", family.space.smallest, load_data(DataConfig()))
    torch.manual_seed(0)
    save_subnet(tmp_path / "mine", Subnet(family.build(family.space.smallest).eval(), config), onnx=False)
    result = command("export", "--subnet", tmp_path / "mine")
    assert result.returncode == 0, result.stderr
    assert "timm cannot build it by a name and arguments: supernet.load_subnet gives it" in result.stdout
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "library_name: supernet" in card
    assert "import timm" not in card
