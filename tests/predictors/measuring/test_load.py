"""A machine that was not quiet, by a kernel's counters that are made up."""

import os
import time

import pytest

from predictors.measuring.load import Load, Watch, doubts
from predictors.measuring.measurements import Measurement
from supernet import Arch

TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Sets the clock, and the seconds of two cores: by all processes, stolen, and by this one."""

    def set_to(clock, used, stolen, own):
        values = [used, 0, 0, 0, 0, 0, 0, stolen, 0, 0]
        line = " ".join(str(round(value * TICKS)) for value in values)
        (tmp_path / "stat").write_text(f"cpu  {line}\ncpu0 {line}\ncpu1 {line}\nintr 1\n")
        monkeypatch.setattr(time, "monotonic", lambda: clock)
        monkeypatch.setattr(os, "times", lambda: (own, 0.0, 0.0, 0.0, clock))
        return tmp_path / "stat"

    return set_to


def test_others_are_what_this_process_did_not_use(machine):
    watch = Watch(machine(clock=100, used=50, stolen=1, own=10))
    machine(clock=110, used=66, stolen=2, own=20)  # 16 of 20 seconds, 10 of them our own
    assert watch.load() == pytest.approx(Load(others=6 / 20, stolen=1 / 20))


def test_what_is_short_or_not_seen_tells_nothing(machine, tmp_path):
    watch = Watch(machine(clock=100, used=50, stolen=1, own=10))
    machine(clock=101, used=52, stolen=1, own=10)
    assert watch.load() is None
    assert Watch(tmp_path / "nothing").load() is None


def row(lower, upper, error=""):
    return Measurement(Arch({"a": 1}), 10.0, lower, upper, error=error)


@pytest.mark.parametrize(
    ("load", "rows", "said"),
    [
        (None, [], None),
        (Load(0.1, 0.0), [row(9.9, 10.1)], None),
        (Load(0.4, 0.0), [], "other processes used 40% of the cores"),
        (Load(0.0, 0.05), [], "the host gave 5% of the time"),
        (None, [row(9.0, 11.0), row(9.9, 12.0), row(9.9, 10.0)], "differs by 20% of their median"),
        (None, [row(1.0, 90.0, error="failed"), row(9.9, 10.1)], None),
        (None, [Measurement(Arch({"a": 1}), 10.0)], None),
    ],
)
def test_doubts_are_told_in_a_line(load, rows, said):
    found = doubts(load, rows)
    assert (found is None) if said is None else (said in found and found.endswith("where nothing else runs"))
