import logging

import pytest
import safetensors.torch
import torch
from timm.utils import ModelEmaV3
from torch import nn

from supernet.artifacts.weights import (
    check_names,
    digest_of,
    load_weights,
    read_safetensors,
    read_weights,
    save_weights,
    without_prefix,
)


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    net[1].register_buffer("mask", torch.ones(4), persistent=False)
    net[1].register_buffer("table", torch.arange(3))
    return net


def same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("wrap", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("keys", [(), ("state_dict",), ("model",), ("net",), ("model", "state_dict")])
def test_weights_are_found_in_what_trainings_write(tmp_path, keys, wrap):
    weights = network().state_dict()
    content = {f"{wrap}{name}": tensor for name, tensor in weights.items()}
    for key in reversed(keys):
        content = {key: content, "epoch": 3, "optimizer": {"state": {}}}
    for suffix in (".pth", ".pth.tar"):
        torch.save(content, tmp_path / f"weights{suffix}")
        found = without_prefix(read_weights(tmp_path / f"weights{suffix}"), weights, "a file")
        assert same(found, weights)


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema"])
def test_the_moving_average_goes_before(tmp_path, key):
    net = network()
    average = ModelEmaV3(network(), 0.9)
    with torch.no_grad():
        average.module[0].weight.mul_(2)
    torch.save({"state_dict": net.state_dict(), key: average.state_dict()}, tmp_path / "weights.pth")
    found = without_prefix(read_weights(tmp_path / "weights.pth"), net.state_dict(), "a file")
    assert same(found, average.module.state_dict())


def test_safetensors_are_read(tmp_path):
    weights = network().state_dict()
    safetensors.torch.save_file(weights, tmp_path / "weights.safetensors")
    assert same(read_weights(tmp_path / "weights.safetensors"), weights)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nonsense", "cannot read the weights in"),
        (b"hello", "cannot read the weights in"),  # for which the unpickler has a KeyError
        ([1, 2], "holds no tensors by name, but a list"),
        ({"epoch": 3}, r"holds no tensors by name, but epoch"),
        ({}, r"holds no tensors by name, but nothing"),
        ({"model": "resnet18", "weights": {}}, "holds no tensors by name, but model, weights"),
    ],
)
def test_what_holds_no_weights_is_refused(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=message) as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"there is no file of weights '.*gone\.pth'"):
        read_weights(tmp_path / "gone.pth")


@pytest.mark.parametrize("prefix", ["backbone.", "encoder.", "model.backbone.body."])
def test_a_common_prefix_is_taken_off_and_said(caplog, prefix):
    weights = network().state_dict()
    found = {f"{prefix}{name}": tensor for name, tensor in weights.items()} | {"decoder.0.weight": torch.zeros(1)}
    with caplog.at_level(logging.WARNING):
        assert same(without_prefix(found, weights, "that.pth"), weights)
    assert f"in that.pth begin with '{prefix}', which is taken off; 1 others are left out" in caplog.text


def test_names_without_a_common_prefix_stay_as_they_are(caplog):
    weights = network().state_dict()
    assert without_prefix(weights, weights, "that.pth") == weights
    others = {"blocks.0.weight": torch.zeros(1), "blocks.0.0.weight": torch.zeros(1)}  # one of eight behind `blocks.`
    assert without_prefix(others, weights, "that.pth") == others
    assert not caplog.text


def test_a_tensor_that_is_missing_or_too_many_is_refused_with_their_numbers():
    net, weights = network(), network().state_dict()
    load_weights(net, weights, "that.pth")
    without = {name: tensor for name, tensor in weights.items() if not name.startswith("0.")}
    with pytest.raises(ValueError, match=r"that\.pth does not fit Sequential: 2 of its 10 .* the first '0\.weight'"):
        load_weights(network(), without, "that.pth")
    with pytest.raises(ValueError, match=r"2 tensors are none of its, the first '9\.weight'"):
        load_weights(network(), weights | {"9.weight": torch.ones(1), "9.bias": torch.ones(1)}, "that.pth")
    with pytest.raises(ValueError, match=r"its tensor '3\.weight' is \[5, 4\], not \[2, 4\]"):
        load_weights(network(), weights | {"3.weight": torch.ones(5, 4)}, "that.pth")
    for name in ("1.running_mean", "1.running_var"):  # learned, if no parameters
        with pytest.raises(ValueError, match=f"1 of its 10 tensors are missing, the first '{name}'"):
            load_weights(network(), {n: t for n, t in weights.items() if n != name}, "that.pth")


def test_what_a_network_counts_or_computes_itself_may_be_missing_or_too_many():
    weights = network().state_dict()
    kept = {name: tensor for name, tensor in weights.items() if name not in ("1.num_batches_tracked", "1.table")}
    load_weights(network(), kept | {"1.mask": torch.ones(4), "7.num_batches_tracked": torch.tensor(1)}, "that.pth")


def test_modules_of_which_the_network_has_nothing_are_left_out_and_said(caplog):
    extra = ["AuxLogits.fc.weight", "AuxLogits.fc.bias"]
    check_names(network(), [], extra, "that.pth", leave_out=True)
    assert "2 tensors in that.pth are left out, the first 'AuxLogits.fc.weight'" in caplog.text
    for missing, unexpected in ((["0.weight"], extra), ([], [*extra, "0.1.weight"])):
        with pytest.raises(ValueError, match=r"that\.pth does not fit .* the first 'AuxLogits\.fc\.weight'"):
            check_names(network(), missing, unexpected, "that.pth", leave_out=True)


def test_optional_modules_may_be_missing():
    check_names(network(), ["3.weight", "3.bias"], ["3.scale"], "that.pth", ("3",))
    with pytest.raises(ValueError, match=r"1 of its 10 tensors are missing, the first '0\.weight'"):
        check_names(network(), ["3.weight", "0.weight"], [], "that.pth", ("3",))


def test_weights_of_a_diverged_training_are_refused(tmp_path):
    weights = network().state_dict()
    weights["3.bias"][1] = torch.nan
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights.pth' has values that are no numbers \(NaN\), first in '3.bias'"):
        read_weights(tmp_path / "weights.pth")


def test_weights_with_a_digest_are_known_by_it(tmp_path):
    path = tmp_path / "weights.safetensors"
    tensors = {
        "half": torch.randn(3, 5).to(torch.bfloat16),
        "mask": torch.tensor([True, False]),
        "count": torch.tensor(7),
        "turned": torch.randn(4, 6).T,
        "none": torch.empty(0, 3),
    }
    save_weights(path, tensors)
    found, ties = read_safetensors(path)
    assert ties == {}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    for place in (end, len(content) - 1, content.index(b"half"), content.index(b"tensors_sha256") + 20):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match=r"weights\.safetensors was changed or damaged"):
            read_safetensors(path)


def test_a_digest_tells_names_types_and_shapes_apart():
    zeros = torch.zeros(4)
    others = ({"a": zeros}, {"b": zeros}, {"a": zeros.view(2, 2)}, {"a": zeros.int()}, {"a": zeros, "b": zeros})
    assert len({digest_of(tensors) for tensors in others}) == len(others)


def test_a_tensor_of_several_names_is_written_once_and_read_by_all(tmp_path):
    path, model = tmp_path / "tied.safetensors", nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    save_weights(path, model.state_dict(keep_vars=True))
    found, ties = read_safetensors(path)
    assert ties == {"1.weight": "0.weight"}
    assert found["1.weight"] is found["0.weight"]
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
