"""Limits that no network meets are refused with the least value that one reaches."""

import dataclasses

import numpy as np
import pytest

from predictors import LatencyPredictor
from service import feasibility
from service.archive import ImageFacts
from service.feasibility import check_reachable
from service.plan import make_plan
from service.request import JobRequest
from supernet.families import FAMILIES

FACTS = ImageFacts(tuple("0123456789"), train=1400, val=400, least_of_a_class=140, side=8)
FAMILY = FAMILIES["mobilenet_v3_micro"](num_classes=10)


def plan(device="here", precision="fp32", **limits):
    return make_plan(JobRequest(5, device, limits, precision), FACTS)


def test_the_bytes_of_the_smallest_network_are_the_least(tmp_path):
    least = 4 * sum(parameter.numel() for parameter in FAMILY.build(FAMILY.space.smallest).parameters())
    with pytest.raises(ValueError, match="no network meets the limit stored_bytes <= 1000") as found:
        check_reachable(plan(stored_bytes=1000), tmp_path)
    said = int(str(found.value).rpartition("value is ")[2].partition(",")[0])
    assert said == least  # a scale and a shift of each channel, into which BatchNorm's statistics merge
    assert check_reachable(plan(stored_bytes=said), tmp_path) == ()
    with pytest.raises(ValueError, match="smallest reachable value"):
        check_reachable(plan(stored_bytes=said - 1), tmp_path)
    assert check_reachable(plan(precision="int8", stored_bytes=said - 1), tmp_path) == ()
    with pytest.raises(ValueError, match=r"activation_bytes.fp32 <= 10; the smallest reachable value is"):
        check_reachable(plan(activation_bytes=10), tmp_path)


def test_this_machine_is_asked_how_fast_the_smallest_network_is(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match=r"value is about .* ms, measured of the smallest network"):
        check_reachable(plan(latency_ms=1e-6), tmp_path)
    monkeypatch.setattr(feasibility, "fastest_ms", lambda family, precision: 1.0)
    assert check_reachable(plan(latency_ms=0.81), tmp_path) == ()  # the fastest need not be the smallest
    with pytest.raises(ValueError, match="about 1 ms"):
        check_reachable(plan(latency_ms=0.79), tmp_path)


def test_a_predictor_says_what_can_be_reached(tmp_path):
    space, generator = FAMILY.space, np.random.default_rng(0)
    archs = [space.smallest, space.largest, *(space.sample(generator) for _ in range(30))]
    latency_ms = [FAMILY.macs(arch) / 1e6 for arch in archs]
    LatencyPredictor.fit(space, archs, latency_ms).save(tmp_path / "phone")
    assert check_reachable(plan("phone", latency_ms=max(latency_ms)), tmp_path) == ("phone",)
    with pytest.raises(ValueError, match=r"no architecture meets the limit latency_ms <= 0.01; the smallest reachable"):
        check_reachable(plan("phone", latency_ms=0.01), tmp_path)
    with pytest.raises(ValueError, match=r"no device 'telephone' .* there are here, phone, and"):
        check_reachable(plan("telephone"), tmp_path)
    other = dataclasses.replace(plan("phone"), space="nasbench201")
    with pytest.raises(ValueError, match="no device 'phone' for networks of this kind"):
        check_reachable(other, tmp_path)
