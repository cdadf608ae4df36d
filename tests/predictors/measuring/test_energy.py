import sys
from types import SimpleNamespace

import numpy as np
import pytest

from predictors import Device
from predictors.measuring import energy
from predictors.measuring.energy import Nvml, Rapl, energy_mj

RANGE_UJ = 262_143_328_850


@pytest.fixture
def powercap(tmp_path):
    """The kernel's folder on a machine with two packages, of which one has parts, and a counter of the whole."""
    at = {"intel-rapl:0": 1_000, "intel-rapl:1": RANGE_UJ - 40_000, "intel-rapl:0:0": 5, "intel-rapl:2": 7}
    names = {"intel-rapl:0": "package-0", "intel-rapl:1": "package-1", "intel-rapl:0:0": "core", "intel-rapl:2": "psys"}
    for folder, counter in at.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "name").write_text(names[folder] + "\n")
        (tmp_path / folder / "energy_uj").write_text(f"{counter}\n")
        (tmp_path / folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (tmp_path / "dtpm").mkdir()
    return tmp_path


def spend(powercap, microjoules):
    """Move every counter on, each beginning anew beyond its range."""
    for path in powercap.glob("*/energy_uj"):
        path.write_text(f"{(int(path.read_text()) + microjoules) % RANGE_UJ}\n")


def runs(powercap, microjoules, took_ms):
    counts = []

    def timer(count):
        counts.append(count)
        spend(powercap, microjoules * count)
        return np.full(count, took_ms)

    return timer, counts


def test_energy_is_that_of_all_packages_and_of_a_run(powercap):
    timer, counts = runs(powercap, 9_000, took_ms=4.0)  # 9 mJ on each of two packages; one begins anew meanwhile
    assert energy_mj(timer, Rapl(powercap)) == pytest.approx(18.0)
    assert counts == [3, 25, 25, 25]  # bursts of 100 ms


def test_a_counter_that_begins_anew_within_a_run_is_seen(powercap):
    spent = Rapl(powercap).start()
    spend(powercap, 50_000)
    assert int((powercap / "intel-rapl:1/energy_uj").read_text()) == 10_000
    assert spent() == pytest.approx(100.0)


def test_without_counters_there_is_one_line(tmp_path, powercap, monkeypatch):
    with pytest.raises(ValueError, match=r"no counter .*/nowhere/intel-rapl:\*/energy_uj here.*leave out energy_mj"):
        Rapl(tmp_path / "nowhere")
    monkeypatch.setattr(energy.Path, "read_text", secret(energy.Path.read_text))
    with pytest.raises(ValueError, match=r"allow it with `sudo chmod a\+r .*intel-rapl:0/energy_uj`"):
        Rapl(powercap)


def secret(read_text):
    def read(path):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read_text(path)

    return read


def test_a_counter_that_stands_still_is_refused(powercap):
    timer, _ = runs(powercap, 0, took_ms=50.0)
    with pytest.raises(ValueError, match="the energy counter did not move in 2 runs"):
        energy_mj(timer, Rapl(powercap))


class Driver:
    """pynvml of a GPU that has taken so many millijoules."""

    NVMLError = type("NVMLError", (Exception,), {})

    def __init__(self, counts=True):
        self.spent_mj, self.counts = 1e9, counts

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        assert uuid == "GPU-1234"
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if not self.counts:
            raise self.NVMLError("Not Supported")
        return int(self.spent_mj)


@pytest.fixture
def on_a_gpu(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="1234"))

    def install(driver):
        monkeypatch.setitem(sys.modules, "pynvml", driver)
        return driver

    return install


def test_a_gpu_counts_millijoules(on_a_gpu):
    driver = on_a_gpu(Driver())

    def timer(count):
        driver.spent_mj += 30 * count
        return np.full(count, 10.0)

    assert energy_mj(timer, energy.meter(Device("gpu", "cuda"))) == pytest.approx(30.0)


def test_a_gpu_that_does_not_count_is_refused(on_a_gpu):
    on_a_gpu(Driver(counts=False))
    with pytest.raises(ValueError, match="NVML says Not Supported; leave out energy_mj"):
        Nvml()
    on_a_gpu(None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'supernet\[energy\]'"):
        Nvml()
