"""The energy of a run of a network, from the counters of the processor (RAPL) or of the GPU (NVML).

Both count what the whole package or GPU takes, idle power included, whoever computes on it; memory chips are not in
what a processor's package counts. Let nothing else run meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from predictors.device import ON_GPU, Device
from predictors.measuring.runtimes import Timer
from supernet.imports import require

POWERCAP = Path("/sys/class/powercap")
BURSTS = 3  # the median of so many is the energy of a run


class Meter(Protocol):
    """A counter of energy."""

    least_ms: float  # how long to compute for the counter's steps not to matter

    def start(self) -> Callable[[], float]:
        """Begin to count; what is returned gives the millijoules since."""


@dataclass(frozen=True)
class _Package:
    """A processor's package, whose counter of microjoules begins anew beyond its range."""

    counter: Path
    range_uj: int

    def read(self) -> int:
        return int(self.counter.read_text())

    def since(self, before: int) -> int:
        """Microjoules since the counter was at `before`; one beginning anew is seen, and lies minutes from the next."""
        now = self.read()
        return now - before if now >= before else now - before + self.range_uj


class Rapl:
    """The running average power limit's counters of all packages, as Linux shows them in the folder `root`, by
    default /sys/class/powercap. ValueError if there are none, or none that may be read."""

    least_ms = 100.0  # the counters move every millisecond

    def __init__(self, root: Path | None = None) -> None:
        self._packages = []
        root = root or POWERCAP
        for folder in sorted(root.glob("intel-rapl:*")):  # of AMD's processors as well
            if folder.name.count(":") > 1 or not (folder / "name").read_text().startswith("package"):
                continue  # parts of packages, and the whole machine, which would be counted twice
            counter = folder / "energy_uj"
            try:
                counter.read_text()
            except PermissionError:
                raise ValueError(
                    f"energy cannot be measured: {counter} may be read by the administrator alone; allow it with "
                    f"`sudo chmod a+r {counter}`, or leave out energy_mj"
                ) from None
            self._packages.append(_Package(counter, int((folder / "max_energy_range_uj").read_text())))
        if not self._packages:
            raise ValueError(
                f"energy cannot be measured: there is no counter {root}/intel-rapl:*/energy_uj here, as in most "
                "virtual machines; leave out energy_mj"
            )

    def start(self) -> Callable[[], float]:
        before = [package.read() for package in self._packages]
        return lambda: sum(map(_Package.since, self._packages, before)) / 1e3


class Nvml:
    """The energy counter of an NVIDIA GPU, the one that torch computes on by default, Volta or later.

    ValueError if the driver has none, ModuleNotFoundError without the package pynvml.
    """

    least_ms = 1000.0  # the counter moves some ten times a second

    def __init__(self) -> None:
        import torch

        pynvml = require("pynvml")
        try:
            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except pynvml.NVMLError as error:
            raise ValueError(f"energy cannot be measured: NVML says {error}; leave out energy_mj") from None
        self._read_mj: Callable[[], int] = lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)

    def start(self) -> Callable[[], float]:
        before = self._read_mj()
        return lambda: float(self._read_mj() - before)


def meter(device: Device) -> Meter:
    """The meter of what the runtime of `device` computes on; raises what `Rapl` and `Nvml` do."""
    return Nvml() if device.runtime in ON_GPU else Rapl()


def energy_mj(timer: Timer, by: Meter) -> float:
    """Millijoules of a run: the median of `BURSTS` bursts of runs, each `by.least_ms` long at least.

    ValueError if the counter does not move.
    """
    runs = max(1, math.ceil(by.least_ms / float(np.median(timer(3)))))
    bursts = []
    for _ in range(BURSTS):
        spent = by.start()
        timer(runs)
        bursts.append(spent() / runs)
    found = float(np.median(bursts))
    if not found > 0:
        raise ValueError(f"the energy counter did not move in {runs} runs: it does not count; leave out energy_mj")
    return found
