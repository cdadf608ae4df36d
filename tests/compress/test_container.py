"""Compressed files: what is read is what was written, and what is damaged, cut off or wrong ends in one line."""

import copy
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from torch import nn

from compress.codebooks import clustered
from compress.container import CHECKSUM, MAGIC, PRELUDE, is_compressed, load_compressed, read_tensors, save_compressed
from compress.transforms import Binary, Bits, Mask, Ternary, fold, transformed
from supernet import Arch
from supernet.artifacts import Subnet, SubnetConfig


def build(arch=None):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, 16),
        nn.Linear(16, 10),
    )
    model[1].running_mean.normal_()
    return model.eval()


CONFIG = SubnetConfig("none", "{}", {"width": 8}, classes=tuple("abcdefghij"), input_size=(3, 8, 8), mean=(0.5,) * 3)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "small.compressed"


def assert_same(model, other):
    state, theirs = model.state_dict(), other.state_dict()
    assert state.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in state.items())
    assert all(tensor.dtype == theirs[name].dtype for name, tensor in state.items())


def small():
    """A model with every transform on it, whose file is small."""
    model = build()
    names = ("0.weight", "4.weight", "5.weight", "5.bias")
    kept = model[4].weight.detach().abs() > 0.05
    transforms = {"0.weight": Bits(8), "4.weight": Mask(kept), "5.weight": Ternary(), "5.bias": Binary()}
    transformed(model, {name: transforms[name] for name in names})
    return model


def test_a_plain_model_is_kept(path):
    model = build()
    assert save_compressed(path, Subnet(model, CONFIG)) == path.stat().st_size
    loaded, config = load_compressed(path, build=build)
    assert_same(loaded, model)
    assert config == CONFIG
    assert not loaded.training
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(x), model(x))


def test_what_transforms_and_codebooks_make_is_kept_in_few_bytes(path):
    model = small()
    before = copy.deepcopy(model.state_dict())
    size = save_compressed(path, Subnet(model, CONFIG))
    assert model.state_dict().keys() == before.keys()
    loaded = load_compressed(path, build=build).model
    assert_same(loaded, fold(copy.deepcopy(model)))
    assert loaded[5].bias.abs().unique().numel() == 1
    (path.parent / "again").mkdir()
    clusters = clustered(fold(model), {"0.weight": 3, "4.weight": 4})
    assert save_compressed(path.parent / "again" / "clustered", Subnet(clusters, CONFIG)) < size
    loaded = load_compressed(path.parent / "again" / "clustered", build=build).model
    assert_same(loaded, fold(clusters))


def test_tied_tensors_are_stored_once_and_stay_tied(path):
    def tied(arch=None):
        model = nn.Sequential(nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 50))
        model[2].weight = model[0].weight
        return model

    model = tied()
    assert save_compressed(path, Subnet(model, CONFIG)) < 1.3 * 4 * 2500
    loaded = load_compressed(path, build=tied).model
    assert_same(loaded, model)
    assert loaded[2].weight is loaded[0].weight


def test_binary_weights_take_a_bit_each(tmp_path):
    plain, signs = nn.Linear(512, 256, bias=False), nn.Linear(512, 256, bias=False)
    fold(transformed(signs, {"weight": Binary()}))
    bytes_of = [save_compressed(tmp_path / name, Subnet(m, CONFIG)) for name, m in (("p", plain), ("s", signs))]
    assert bytes_of[1] - 512 * 256 / 8 - 256 * 4 < 700 < bytes_of[0] / 100
    assert torch.equal(torch.from_numpy(read_tensors(tmp_path / "s")["weight"]), signs.weight)


def test_a_file_is_not_overwritten_and_nothing_is_left_of_one_that_failed(path):
    with pytest.raises(ValueError, match=r"'weight' is of torch.bfloat16"):
        save_compressed(path, Subnet(nn.Linear(2, 2).bfloat16(), CONFIG))
    assert list(path.parent.iterdir()) == []
    save_compressed(path, Subnet(build(), CONFIG))
    with pytest.raises(ValueError, match="already"):
        save_compressed(path, Subnet(build(), CONFIG))
    assert is_compressed(path)
    assert not is_compressed(path.parent)
    assert not is_compressed(path.parent / "none")


TOLD = "is damaged|begins with other bytes|of format|cut off|bytes and not"


def test_every_flipped_byte_and_every_end_is_told(path):
    save_compressed(path, Subnet(small(), CONFIG))
    content, damaged = path.read_bytes(), path.parent / "broken"
    places = [*range(60), *range(60, len(content), 37)]
    for place in places:
        damaged.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        with pytest.raises(ValueError, match=TOLD) as error:
            load_compressed(damaged, build=build)
        assert "\n" not in str(error.value)
    for length in [*places, len(content) - 1]:
        damaged.write_bytes(content[:length])
        with pytest.raises(ValueError, match=TOLD):
            load_compressed(damaged, build=build)
    damaged.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match="bytes and not"):
        load_compressed(damaged, build=build)


def written(path, content, number=1):
    """A file with the header `content` and no streams, whose checksums are right."""
    header = json.dumps(content).encode()
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    coded = coder.compress(header) + coder.flush()
    return with_prelude(path, number, len(header), coded)


def with_prelude(path, number, size, coded):
    prelude = PRELUDE.pack(MAGIC, number, size, len(coded))
    path.write_bytes(prelude + CHECKSUM.pack(zlib.crc32(prelude + coded)) + coded)
    return path


def huge(**wrong):
    stream = {"type": "float32", "count": 0, "bytes": 0}
    tensor = {"name": "4.weight", "shape": [16, 288], "dtype": "float32", "values": stream, "crc32": 0}
    return {"config": CONFIG.content(), "ties": {}, "tensors": [tensor | wrong]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (huge(shape=[10**6, 10**6]), "take 4,000,000,000,000 bytes"),
        (huge(shape=[10**4, 10**4]), "does not fit Sequential: its tensor '4.weight'"),
        (huge(), "'4.weight' that is none"),
        (huge(values={"bits": 8, "count": 10**12, "bytes": 0}), "10{12} entries"),
        (huge(values={"bits": -8, "count": 4608, "bytes": 0}), "symbols of -8 bits"),
        (huge(values={"type": "float32", "count": 0, "bytes": -5}), "header says no tensors"),
        (huge(shape=[-1, 4]), "header says no tensors"),
        (huge(shape="many"), "header says no tensors"),
        (huge(dtype="object"), "header says no tensors"),
        (huge(crc32="0"), "header says no tensors"),
        ({"config": {}, "ties": {}, "tensors": []}, "no subnet of format 1"),
        ({"config": CONFIG.content(), "ties": {}, "tensors": []}, "tensors are missing"),
        ({"config": CONFIG.content() | {"format": 99}, "ties": {}, "tensors": []}, "format 99"),
        ({"tensors": 3}, "header says no tensors"),
        ([], "header says no tensors"),
    ],
)
def test_what_a_header_may_not_say_is_told_in_a_line(path, content, words):
    with pytest.raises(ValueError, match=words.replace("10{12}", "1000000000000")) as error:
        load_compressed(written(path, content), build=build)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_other_formats_and_other_files_are_told(path):
    with pytest.raises(ValueError, match="format 7, and this version"):
        load_compressed(written(path, huge(), number=7), build=build)
    path.write_bytes(b"PK" + bytes(100))
    with pytest.raises(ValueError, match="begins with other bytes"):
        load_compressed(path, build=build)
    with pytest.raises(ValueError, match="No such file"):
        load_compressed(path.parent / "none", build=build)


def test_a_header_that_would_grow_without_end_is_refused(path):
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    coded = coder.compress(bytes(2**24)) + coder.flush()
    for size in (10, 2**32 - 1):
        with pytest.raises(ValueError, match="header"):
            load_compressed(with_prelude(path, 1, size, coded), build=build)


def test_the_prelude_is_that_of_the_documentation(path):
    save_compressed(path, Subnet(build(), CONFIG))
    content = path.read_bytes()
    magic, number, size, coded_size, checksum = struct.unpack("<8s4I", content[:24])
    assert (magic, number) == (b"\x89subnet\n", 1)
    assert zlib.crc32(content[:20] + content[24 : 24 + coded_size]) == checksum
    header = json.loads(zlib.decompress(content[24 : 24 + coded_size], -15))
    assert len(json.dumps(header, separators=(",", ":"))) == size
    assert Arch(header["config"]["arch"]) == Arch({"width": 8})
    assert np.prod(header["tensors"][0]["shape"]) == 8 * 27
