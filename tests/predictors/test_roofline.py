import numpy as np
import pytest

from compress.roofline import Roofline
from predictors import Device, roofline
from predictors.measuring import runtimes
from predictors.roofline import measure_roofline
from supernet.operations import operations


def test_a_larger_working_set_is_never_faster_than_a_smaller_one():
    found = Roofline(1e9, {100: 4e9, 1000: 5e9, 10_000: 1e9})
    assert [found.bandwidth(moved) for moved in (1, 100, 999, 1000, 9999, 10**9)] == [5e9, 5e9, 5e9, 5e9, 5e9, 1e9]
    assert found.memory_bandwidth == 1e9
    assert (found.compute_ms(1e6), found.transfer_ms(1e6)) == (1.0, 1.0)


@pytest.mark.parametrize("values", [(0, {1: 1.0}), (1.0, {}), (1.0, {1: 0.0})])
def test_what_cannot_be_is_refused(values):
    with pytest.raises(ValueError, match="peak and bandwidth are positive"):
        Roofline(*values)


def test_it_is_kept_with_the_device(tmp_path):
    with pytest.raises(ValueError, match=r"there is no .*roofline.json: measure the device"):
        Roofline.load(tmp_path)
    found = Roofline(1e9, {100: 4e9, 1000: 1e9}, 0.01)
    found.save(tmp_path)
    assert Roofline.load(tmp_path) == found
    (tmp_path / "roofline.json").write_text("[]")
    with pytest.raises(ValueError, match="is no roofline, or damaged"):
        Roofline.load(tmp_path)


def test_a_device_whose_speed_is_known_is_measured_to_have_it(monkeypatch):
    """One that takes 1 ns for a MAC, 0.5 ns for a byte, 1 us for an operation and 1 ms for a run, and now and then
    more."""
    draw = np.random.default_rng(0)

    def prepare(model, device, example):
        found = operations(model, example)
        ms = 1.0
        for each in found.operations:
            ms += 1e-3 + max(1e-6 * each.macs, 0.5e-6 * each.bytes_moved(device.bits))
        return lambda count: ms * (1 + draw.exponential(size=count) * (draw.random(count) < 0.7))

    monkeypatch.setattr(roofline, "prepare", prepare)
    found = measure_roofline(Device("known", "torch"))
    assert found.peak_macs == pytest.approx(1e9, rel=0.02)
    assert found.memory_bandwidth == pytest.approx(2e9, rel=0.02)
    assert found.overhead_ms == pytest.approx(1e-3, rel=0.02)


def test_a_runtime_that_is_not_here_is_refused():
    with pytest.raises(ValueError, match="no runtime 'phone'"):
        measure_roofline(Device("phone", "phone"))
    assert "phone" not in runtimes.RUNTIMES
