"""Tensors coded and decoded: equal, in the form that is expected, and in no more bytes than their entropy allows."""

import numpy as np
import pytest
import torch

from compress.codebooks import kmeans
from compress.coding import decode, encode, inflated
from compress.transforms import Binary, Bits, Codebook, Mask, Ternary

GENERATOR = np.random.default_rng(0)
WEIGHT = GENERATOR.standard_normal((40, 30, 3)).astype(np.float32)
PRUNED = np.where(np.abs(WEIGHT) > 1.5, WEIGHT, np.float32(0))


def of(transform, weight=WEIGHT):
    return transform(torch.from_numpy(weight)).numpy()


@pytest.mark.parametrize(
    ("array", "streams"),
    [
        (WEIGHT, {"values"}),
        (WEIGHT.astype(np.float16).astype(np.float32), {"values"}),
        (PRUNED, {"gaps", "values"}),
        (of(Codebook(tuple(kmeans(WEIGHT, 32).tolist()))), {"table", "symbols"}),
        (of(Mask(torch.from_numpy(PRUNED != 0))), {"gaps", "values"}),
        (of(Bits(8)), {"steps", "values"}),
        (of(Bits(5)), {"steps", "values"}),
        (of(Bits(4, per_channel=False)), {"table", "symbols"}),
        (of(Bits(3), PRUNED), {"gaps", "steps", "values"}),
        (of(Binary()), {"steps", "table", "symbols"}),
        (of(Binary("one")), {"table", "symbols"}),
        (of(Ternary()), {"gaps", "steps", "table", "symbols"}),
        (np.zeros((500, 7), np.float32), {"table", "symbols"}),
        (np.full((3, 1), np.nan, np.float32), {"values"}),
        (np.array([np.inf, -np.inf, 1e30, 1e-30], np.float32), {"values"}),
        (np.zeros((0, 3), np.float32), {"values"}),
        (np.float32(0.1).reshape(()), {"values"}),
        (np.array(12, np.int64), {"values"}),
        (np.array([[True, False]]), {"values"}),
        (np.array([1.5, 1e300]), {"values"}),
    ],
)
def test_a_tensor_is_kept_exactly_in_the_smallest_form(array, streams):
    entry, data = encode(array)
    decoded = decode(entry, data)
    assert decoded.dtype == array.dtype
    assert decoded.shape == array.shape
    assert np.array_equal(decoded, array, equal_nan=array.dtype.kind == "f")
    assert entry.keys() - {"shape", "dtype", "limit"} == streams


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
def test_symbols_take_what_huffman_s_code_would(bits):
    array = GENERATOR.standard_normal(2**bits).astype(np.float32)[GENERATOR.integers(2**bits, size=20000)]
    entry, data = encode(array)
    assert np.array_equal(decode(entry, data), array)
    assert len(data) <= 20000 * bits / 8 + 4 * 2**bits


def test_pruned_and_clustered_weights_take_little_more_than_their_entropy():
    weight = GENERATOR.standard_normal(60000).astype(np.float32)
    weight[np.abs(weight) < 1.2816] = 0  # a fifth is left
    kept = weight != 0
    centroids = kmeans(weight[kept], 32)
    weight[kept] = np.array(centroids)[np.abs(weight[kept, None] - centroids).argmin(1)]
    _, counts = np.unique(weight[kept], return_counts=True)
    shares, density = counts / counts.sum(), kept.mean()
    entropy = -(shares * np.log2(shares)).sum() * kept.sum()
    entropy -= len(weight) * (density * np.log2(density) + (1 - density) * np.log2(1 - density))
    entry, data = encode(weight)
    assert np.array_equal(decode(entry, data), weight)
    assert len(data) <= 1.05 * entropy / 8 + 4 * len(centroids) + 100


def test_ten_million_zeros_between_two_weights_are_kept():
    array = np.zeros(10_000_000, np.float32)
    array[[0, 999, 1000, 9_999_999]] = 0.1, 0.2, 0.3, 0.4
    entry, data = encode(array)
    assert np.array_equal(decode(entry, data), array)
    assert len(data) < 2000


def test_gaps_are_those_worked_by_hand():
    entry = {
        "shape": [2, 5],
        "dtype": "float32",
        "limit": 3,
        "gaps": {"bits": 2, "count": 4, "bytes": 1},  # 1, 0, 3 (no weight), 1: at 1, 2 and 7
        "values": {"type": "float16", "count": 3, "bytes": 6},
    }
    data = bytes([0b01110001]) + np.array([1, 2, 3], "<f2").tobytes()
    assert decode(entry, data).tolist() == [[0, 1, 2, 0, 0], [0, 0, 3, 0, 0]]
    for wrong in ({"shape": [7]}, {"limit": 2}, {"shape": [2]}, {"gaps": {"bits": 2, "count": 3, "bytes": 1}}):
        with pytest.raises(ValueError, match=r"positions|entries|symbols"):
            decode(entry | wrong, data)
    with pytest.raises(ValueError, match="8 bytes are not the 7"):
        decode(entry, data + b"0")


def test_a_stream_gives_no_more_than_it_says():
    entry, data = encode(np.zeros(10**6, np.int64))
    assert len(data) < 10000
    stream = entry["values"]
    for wrong in ({"count": 10**6 - 1}, {"count": 10**9}, {"type": "object"}, {"type": "int8"}, {"deflated": False}):
        with pytest.raises(ValueError, match=r"stream|numbers"):
            decode(entry | {"values": stream | wrong}, data)
    with pytest.raises(ValueError, match="deflated stream"):
        inflated(b"\x00" * 10, 5)


def test_types_of_numbers_that_are_not_stored_are_named():
    with pytest.raises(ValueError, match="complex128"):
        encode(np.zeros(3, complex))
