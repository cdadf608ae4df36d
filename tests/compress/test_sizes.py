"""Bytes of networks that are not compressed, and an estimate of those that are."""

import gzip

import numpy as np
import pytest
import safetensors.torch
from torch import nn

from compress.coding import encode
from compress.sizes import expected_bytes, uncompressed_bytes
from supernet.artifacts import Subnet, SubnetConfig
from supernet.artifacts.subnet_config import Input


def test_bytes_are_those_of_the_files():
    model = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10)).eval()
    config = SubnetConfig("none", "{}", {}, inputs=(Input("x", (100,), "float32"),), output_names=("y",))
    sizes = uncompressed_bytes(Subnet(model, config))
    plain = safetensors.torch.save(model.state_dict())
    assert sizes["float32"] == len(plain)
    assert sizes["float16"] == len(safetensors.torch.save(model.half().state_dict()))
    assert sizes["float32, gzip"] == len(gzip.compress(plain))
    assert 5500 < sizes["int8, ONNX"] < 5500 + 5000  # a byte a weight and the graph
    assert "int8, ONNX" not in uncompressed_bytes(Subnet(model, config), onnx=False)


@pytest.mark.parametrize(("density", "bits"), [(1.0, 4), (0.5, 3), (0.1, 5)])
def test_coded_weights_take_what_is_expected(density, bits):
    generator, count = np.random.default_rng(0), 100_000
    weight = (1 + generator.integers(2**bits, size=count)) * (generator.random(count) < density)
    _, data = encode(weight.astype(np.float32))
    assert len(data) == pytest.approx(expected_bytes(count, (weight != 0).mean(), bits), rel=0.03)
    assert expected_bytes(1000, 0.0) == 0
