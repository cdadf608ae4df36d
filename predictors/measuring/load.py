"""Whether the machine did something else while latencies were measured."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from predictors.measuring.measurements import Measurement

STAT = Path("/proc/stat")
BUSY = 0.15  # part of the cores that others use, above which a measurement is doubted
STOLEN = 0.02  # part of the time that the host gave to other virtual machines
WIDE = 0.10  # distance of a subnet's quartiles, as a part of its median
SHORTEST = 2.0  # seconds of watching that tell anything


class Load(NamedTuple):
    """What else the machine did meanwhile, as parts of the time of all its cores, from 0 to 1."""

    others: float  # used by other processes
    stolen: float  # given to other virtual machines by the host


@dataclass(frozen=True)
class _Times:
    """Seconds up to now."""

    clock: float
    used: float  # of all cores, by whomever
    stolen: float
    own: float  # of these, by this process and its children that have ended
    cores: int


class Watch:
    """Watches the machine from when it is made; on systems without /proc/stat it sees nothing."""

    def __init__(self, stat: Path = STAT) -> None:
        self._stat = stat
        self._begin = _times(stat)

    def load(self) -> Load | None:
        """Since then; None where nothing can be seen, or it is too short ago."""
        begin, end = self._begin, _times(self._stat)
        if begin is None or end is None or end.clock - begin.clock < SHORTEST:
            return None
        total = (end.clock - begin.clock) * end.cores
        others = (end.used - begin.used) - (end.own - begin.own)
        return Load(min(max(others / total, 0.0), 1.0), min(max((end.stolen - begin.stolen) / total, 0.0), 1.0))


def doubts(load: Load | None, rows: Sequence[Measurement] = ()) -> str | None:
    """What there is to say against measurements, in a line: other processes, a busy host, and runs of one subnet that
    differ much; None if there is nothing."""
    found = []
    if load is not None and load.others > BUSY:
        found.append(f"other processes used {load.others:.0%} of the cores meanwhile")
    if load is not None and load.stolen > STOLEN:
        found.append(f"the host gave {load.stolen:.0%} of the time to other machines")
    spreads = [(row.upper_quartile_ms - row.lower_quartile_ms) / row.latency_ms for row in rows if not row.error]
    spread = float(np.nanmedian(spreads)) if np.isfinite(spreads).any() else 0.0
    if spread > WIDE:
        found.append(f"the middle half of a subnet's runs differs by {spread:.0%} of their median")
    if not found:
        return None
    return f"the machine was not quiet: {', and '.join(found)}; measure again where nothing else runs"


def _times(stat: Path) -> _Times | None:
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    # user, nice, system, idle, iowait, irq, softirq, steal; proc(5)
    user, nice, system, _, _, irq, softirq, steal = (int(value) / ticks for value in lines[0].split()[1:9])
    own = sum(os.times()[:4])
    cores = sum(line.startswith("cpu") for line in lines) - 1
    return _Times(time.monotonic(), user + nice + system + irq + softirq, steal, own, cores)
