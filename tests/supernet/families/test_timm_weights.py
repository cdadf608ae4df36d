import gc
import re

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from timm.data import ImageNetInfo
from timm.models import save_for_hf

from supernet.families import FAMILIES, from_timm
from supernet.families.timm_models import timm_model
from supernet.families.timm_weights import own_classes

NAME = "test_resnet"


def stock(name: str = NAME, num_classes: int = 5, **options):
    torch.manual_seed(1)
    return timm.create_model(name, num_classes=num_classes, **options).eval()


def write(path, weights):
    torch.save(weights, path)
    return path


def equal_but(model, other, *but):
    expected = other.state_dict()
    assert model.state_dict().keys() == expected.keys()
    return {n for n, t in model.state_dict().items() if not torch.equal(t, expected[n])} == set(but)


@pytest.mark.parametrize("prefix", ["backbone.", "module.model.", "encoder.body."])
def test_a_prefix_is_taken_off(tmp_path, prefix, caplog):
    weights = {f"{prefix}{name}": tensor for name, tensor in stock().state_dict().items()}
    path = write(tmp_path / "weights.pth", {"state_dict": weights, "epoch": 1})
    model = timm_model(NAME, 5).load(path, classifier=True)
    assert equal_but(model, stock())
    assert "state_dict" not in model.pretrained_cfg
    assert "which is taken off" in caplog.text


@pytest.mark.parametrize("make", [FAMILIES["timm"], from_timm])
def test_the_weights_of_another_model_are_refused(tmp_path, make):
    path = write(tmp_path / "weights.pth", stock("test_vit").state_dict())
    family = make(NAME, pretrained=path, num_classes=5, input_size=32)
    message = (
        r"weights\.pth' does not fit ResNet: \d+ of its \d+ tensors are missing, the first 'conv1\.0\.weight', and "
    )
    with pytest.raises(ValueError, match=message + r"\d+ tensors are none of its, the first 'cls_token'") as error:
        family.supernet()
    assert "\n" not in str(error.value)


def test_the_weights_of_a_deeper_or_a_narrower_model_are_refused(tmp_path):
    deeper = write(tmp_path / "deeper.pth", timm.create_model("resnet34", num_classes=5).state_dict())
    with pytest.raises(ValueError, match=r"80 tensors are none of its, the first 'layer1\.2\.conv1\.weight'"):
        timm_model("resnet18", 5).load(deeper)
    narrow = write(tmp_path / "narrow.pth", stock("resnet18", channels=(8, 16, 32, 64)).state_dict())
    with pytest.raises(ValueError, match=r"size mismatch for layer1\.0\.conv1\.weight: .*\[8, 64, 3, 3\].*\[64, 64,"):
        timm_model("resnet18", 5).load(narrow)


def test_a_classifier_and_a_stem_may_differ_and_nothing_else(tmp_path, caplog):
    path = write(tmp_path / "weights.pth", stock().state_dict())
    assert equal_but(timm_model(NAME, 7).load(path), timm.create_model(NAME, num_classes=7), *[]) is False
    other = timm_model(NAME, 7).load(path)
    expected = stock().state_dict()
    different = {
        n for n, t in other.state_dict().items() if t.shape != expected[n].shape or not torch.equal(t, expected[n])
    }
    assert different == {"fc.weight", "fc.bias"}
    assert "has no classifier for 7 classes" in caplog.text
    grey = timm_model(NAME, 5, in_chans=1).load(path)
    assert {n for n, t in grey.state_dict().items() if not torch.equal(t.expand_as(expected[n]), expected[n])} == {
        "conv1.0.weight"
    }
    assert torch.allclose(grey.conv1[0].weight, expected["conv1.0.weight"].sum(1, keepdim=True))
    with pytest.raises(ValueError, match=r"weights\.pth' has no classifier for 7 classes, but it needs 'fc\.weight'"):
        timm_model(NAME, 7).load(path, classifier=True)
    assert equal_but(timm_model(NAME, 5).load(path, classifier=False), stock(), "fc.weight", "fc.bias")
    without = {n: t for n, t in stock().state_dict().items() if not n.startswith("conv1.")}
    with pytest.raises(ValueError, match=r"missing, the first 'conv1\.0\.weight'"):
        timm_model(NAME, 5).load(write(tmp_path / "headless.pth", without))


def test_formats_that_timm_converts_are_read(tmp_path):
    model = stock("convnext_atto", 5)
    pairs = (  # of the authors' names, as timm's converter knows them
        (r"^stem\.", "downsample_layers.0."), (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."), (r"conv_dw", "dwconv"), (r"mlp\.fc(\d)", r"pwconv\1"),
        (r"^head\.fc", "head"), (r"^head\.norm", "norm"),
    )  # fmt: skip
    weights = {}
    for name, tensor in model.state_dict().items():
        for pattern, other in pairs:
            name = re.sub(pattern, other, name)
        weights[name] = tensor
    assert "downsample_layers.1.0.weight" in weights
    path = write(tmp_path / "authors.pth", {"model": weights})
    assert equal_but(timm_model("convnext_atto", 5).load(path, classifier=True), model)
    assert equal_but(timm_model("convnext_atto", 7).load(path), model, "head.fc.weight", "head.fc.bias")
    at_other_size = stock("test_vit", 5, img_size=64)
    loaded = timm_model("test_vit", 5, input_size=32).load(write(tmp_path / "vit.pth", at_other_size.state_dict()))
    expected = at_other_size.state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in loaded.state_dict().items() if n != "pos_embed")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # timm leaves the file open
def test_an_archive_of_numpy_for_another_model_is_refused_in_one_line(tmp_path):
    np.savez(tmp_path / "weights.npz", **{"embedding/kernel": np.zeros(3)})
    for name in (NAME, "test_vit"):
        with pytest.raises(ValueError, match=rf"cannot load weights of '{name}' from '.*weights\.npz': .+") as error:
            timm_model(name, 5).load(tmp_path / "weights.npz")
        assert "\n" not in str(error.value)
    del error
    gc.collect()


def test_a_folder_is_checked_like_a_file_and_a_file_goes_before_it(tmp_path):
    model = stock()
    save_for_hf(model, tmp_path / "model", safe_serialization=True)
    name = f"local-dir:{tmp_path / 'model'}"
    assert equal_but(timm_model(name).load(), model)
    with torch.no_grad():
        model.fc.weight.zero_()
    assert equal_but(timm_model(name).load(write(tmp_path / "more.pth", model.state_dict())), model)
    (tmp_path / "model" / "model.safetensors").unlink()
    write(tmp_path / "model" / "pytorch_model.bin", stock("test_vit").state_dict())
    with pytest.raises(ValueError, match=r"does not fit ResNet: .* the first 'conv1\.0\.weight'"):
        timm_model(name).load()


def test_a_folders_preparation_of_images_is_its_own(tmp_path):
    model = stock()
    model.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "crop_pct": 0.5}
    save_for_hf(model, tmp_path, safe_serialization=True)
    config = timm_model(f"local-dir:{tmp_path}").config
    assert (tuple(config["mean"]), config["crop_pct"]) == ((0.1, 0.2, 0.3), 0.5)


def test_what_timms_weights_tell_apart_is_known_by_name():
    config = timm_model("resnet18").config
    info = ImageNetInfo()
    names = tuple(info.label_names())
    descriptions = tuple(info.label_descriptions())
    assert own_classes(config, names) == names
    assert own_classes(config, descriptions) == descriptions
    assert own_classes(config, names[::-1]) == names
    assert own_classes(config, [f"product {i}" for i in range(1000)]) == names
    assert own_classes(config, list(map(str, range(1000)))) is None
    assert own_classes({"num_classes": 3}, ("a", "b", "c")) == ()
    assert own_classes({"num_classes": 3, "source": "local-dir"}, ("a", "b", "c")) is None
    assert own_classes({"num_classes": 2, "label_names": ["b", "a"]}, ("a", "b")) == ("b", "a")


@pytest.mark.parametrize("make", [FAMILIES["timm"], from_timm])
def test_a_supernet_keeps_a_pretrained_classifier_for_its_own_classes_alone(tmp_path, make, caplog):
    model = stock(num_classes=2)
    save_for_hf(model, tmp_path, {"label_names": ["cat", "dog"]}, safe_serialization=True)
    family = make(f"local-dir:{tmp_path}", pretrained=True, input_size=32)
    kept, fresh, again = (
        family.supernet(3, classes=classes).fc.weight for classes in (("cat", "dog"), ("dog", "cat"), ("dog", "cat"))
    )
    assert torch.equal(kept.sum(), model.fc.weight.sum()) or torch.allclose(
        kept.sort().values, model.fc.weight.sort().values
    )
    assert not torch.allclose(fresh.sort().values, model.fc.weight.sort().values)
    assert torch.equal(fresh, again)  # from the seed
    assert "tells other classes apart (cat, ...): it starts anew" in caplog.text


def test_without_a_network_the_error_comes_at_once(monkeypatch, tmp_path, recwarn):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = (
        r"cannot get weights of 'resnet18': http://127\.0\.0\.1:9 cannot be reached \(.+\); name a file of weights"
    )
    with pytest.raises(ValueError, match=message):
        timm_model("resnet18").load()
    with pytest.raises(ValueError, match="cannot get the configuration of 'hf-hub:timm/nothing'"):
        timm_model("hf-hub:timm/nothing")


def test_a_server_that_answers_at_all_is_left_to_the_download(monkeypatch):
    from supernet.families import timm_weights

    asked = []

    def answer(request, timeout):
        asked.append((request.full_url, request.get_method(), timeout))
        raise timm_weights.urllib.error.HTTPError(request.full_url, 404, "not found", None, None)

    monkeypatch.setattr(timm_weights.urllib.request, "urlopen", answer)
    timm_weights.check_reachable({"url": "https://example.org/weights-0a.pth"}, "some")
    assert asked == [("https://example.org/weights-0a.pth", "HEAD", timm_weights.SECONDS)]
