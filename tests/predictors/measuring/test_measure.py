import numpy as np
import pytest

from predictors.measuring.measure import MeasuringConfig, measure
from predictors.measuring.measurements import append_measurements, read_measurements
from predictors.measuring.noise import relative_differences
from supernet.space import SearchSpace

SPACE = SearchSpace({"width": tuple(range(1, 41))})
ARCHS = SPACE.decode(np.arange(40)[:, None])
CONFIG = MeasuringConfig(rounds=9, visit_ms=0.0, together=8)


class Machine:
    """Subnets that take their width in milliseconds, times what the machine is slowed down by."""

    def __init__(self, slowdown, seed=0):
        self.visits = 0
        self.loaded = []
        self.slowdown = slowdown
        self.generator = np.random.default_rng(seed)

    def prepare(self, arch):
        self.loaded.append(arch)

        def run(count):
            self.visits += 1
            return arch["width"] * self.slowdown(self.visits) * self.generator.normal(1, 0.003, count)

        return run


def latencies(rows):
    return np.array([row.latency_ms for row in rows])


def test_drift_is_divided_out(tmp_path):
    machine = Machine(lambda visits: 1 + visits / 500)  # more than twice as slow in the end
    rows = measure(ARCHS, machine.prepare, tmp_path / "measurements.csv", CONFIG)
    ratio = latencies(rows) / np.arange(1, 41)
    assert ratio.std() / ratio.mean() < 0.03
    assert max(row.drift for row in rows) > 1.5
    assert [row.arch for row in rows] == ARCHS


def test_without_drift_latencies_are_exact_medians(tmp_path):
    rows = measure(ARCHS, Machine(lambda visits: 1.0).prepare, tmp_path / "measurements.csv", CONFIG)
    np.testing.assert_allclose(latencies(rows), np.arange(1, 41), rtol=0.004)
    assert all(row.lower_quartile_ms <= row.latency_ms <= row.upper_quartile_ms for row in rows)
    assert all(row.runs == CONFIG.rounds * CONFIG.visit_runs for row in rows)


def test_a_pause_of_the_machine_is_an_outlier_and_leaves_the_median(tmp_path):
    machine = Machine(lambda visits: 30.0 if visits % 50 == 0 else 1.0)
    rows = measure(ARCHS, machine.prepare, tmp_path / "measurements.csv", CONFIG)
    np.testing.assert_allclose(latencies(rows), np.arange(1, 41), rtol=0.01)
    assert sum(row.outliers for row in rows) > 0


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "measurements.csv"

    def killed(done, total):
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(ARCHS, Machine(lambda visits: 1.0).prepare, path, CONFIG, progress=killed)
    path.write_bytes(path.read_bytes() + b'"{""width"": 17}",17.0,16')  # as if killed while it wrote a line
    steps = []
    machine = Machine(lambda visits: 2.0)  # the machine is slower now, the references say so
    rows = measure(ARCHS, machine.prepare, path, CONFIG, progress=lambda *step: steps.append(step))
    np.testing.assert_allclose(latencies(rows), np.arange(1, 41), rtol=0.01)
    assert steps[0] == (16, 40)
    assert steps[-1] == (40, 40)
    assert len(machine.loaded) == 24 + CONFIG.references
    assert len({row.arch for row in read_measurements(path, SPACE) if not row.reference}) == 40


def test_nothing_is_measured_twice(tmp_path):
    path = tmp_path / "measurements.csv"
    first = measure(ARCHS, Machine(lambda visits: 1.0).prepare, path, CONFIG)
    again = measure(ARCHS[:5], Machine(lambda visits: 1 / 0).prepare, path, CONFIG)
    np.testing.assert_allclose(latencies(again), latencies(first[:5]), rtol=1e-5)


def test_a_subnet_that_fails_is_recorded_and_the_run_goes_on(tmp_path):
    machine = Machine(lambda visits: 1.0)

    def prepare(arch):
        if arch["width"] == 7:
            raise ValueError("no kernel for\nthis layer")
        return machine.prepare(arch)

    path = tmp_path / "measurements.csv"
    rows = measure(ARCHS, prepare, path, CONFIG)
    failed = [row for row in rows if row.error]
    assert [row.arch["width"] for row in failed] == [7]
    assert [row.error for row in read_measurements(path) if row.error] == ["ValueError: no kernel for this layer"]
    assert sum(not row.error for row in rows) == 39


def test_few_subnets_of_which_one_fails_are_measured(tmp_path):
    machine = Machine(lambda visits: 1.0)

    def prepare(arch):
        if arch["width"] == 2:
            raise ValueError("too wide")
        return machine.prepare(arch)

    rows = measure(ARCHS[:3], prepare, tmp_path / "measurements.csv", CONFIG)
    assert [bool(row.error) for row in rows] == [False, True, False]


def test_a_machine_on_which_nothing_runs_is_an_error(tmp_path):
    def prepare(arch):
        raise ValueError("no such runtime")

    with pytest.raises(ValueError, match=r"none of 10 subnets runs .* no such runtime"):
        measure(ARCHS, prepare, tmp_path / "measurements.csv", CONFIG)


def test_a_missing_package_stops_at_once(tmp_path):
    def prepare(arch):
        raise ModuleNotFoundError("onnxruntime is not installed")

    with pytest.raises(ModuleNotFoundError):
        measure(ARCHS, prepare, tmp_path / "measurements.csv", CONFIG)


def test_noise_is_the_relative_difference_of_two_measurements(tmp_path):
    rows = [
        measure(ARCHS, Machine(lambda visits, s=s: s, seed=i).prepare, tmp_path / f"{i}.csv", CONFIG, seed=i)
        for i, s in enumerate((1.0, 1.1))
    ]
    assert abs(relative_differences(*rows)).mean() == pytest.approx(0.1 / 1.05, rel=0.02)
    with pytest.raises(ValueError, match="no architecture was measured both times"):
        relative_differences(rows[0][:3], rows[1][3:])


def test_a_measurement_file_is_checked_line_by_line(tmp_path):
    path = tmp_path / "measurements.csv"
    path.write_text('arch,latency_ms\n"{""width"": 1}",2.5\n"{""width"": 2}",-1\n')
    with pytest.raises(ValueError, match=r"line 3: a latency is a positive number of milliseconds, not '-1'"):
        read_measurements(path, SPACE)
    path.write_text('arch,latency_ms\n"{""width"": 99}",2.5\n')
    with pytest.raises(ValueError, match=r"line 2: choice 'width' is one of"):
        read_measurements(path, SPACE)
    path.write_text("arch,milliseconds\n")
    with pytest.raises(ValueError, match="no column 'latency_ms'"):
        read_measurements(path, SPACE)


def test_measurements_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "measurements.csv"
    rows = measure(ARCHS, Machine(lambda visits: 1.0).prepare, path, CONFIG)
    again = tmp_path / "again.csv"
    append_measurements(again, rows[:3])
    append_measurements(again, rows[3:])
    assert [row.arch for row in read_measurements(again)] == [row.arch for row in rows]
    np.testing.assert_allclose(latencies(read_measurements(again)), latencies(rows), rtol=1e-5)


FURTHER = {"energy_mj": lambda arch, timer: 3.0 * arch["width"], "peak_memory_bytes": lambda arch, timer: 2e6}


def test_further_costs_are_columns_of_their_own_and_come_back(tmp_path):
    path = tmp_path / "measurements.csv"
    rows = measure(ARCHS[:4], Machine(lambda visits: 1.0).prepare, path, CONFIG, further=FURTHER)
    assert [row.energy_mj for row in rows] == [3.0, 6.0, 9.0, 12.0]
    again = [row for row in read_measurements(path, SPACE) if not row.reference]
    assert sorted(row.energy_mj for row in again) == [3.0, 6.0, 9.0, 12.0]
    assert {row.peak_memory_bytes for row in again} == {2e6}


FORMER = 'arch,latency_ms,runs,reference,error\n"{""width"": 1}",1.5,27,0,\n"{""width"": 2}",nan,0,0,too wide\n'


def test_a_file_from_before_further_costs_is_read_and_goes_on(tmp_path):
    """Format of `measurements.csv` before energy: a row with what it lacks is measured again, a failed one is not."""
    path = tmp_path / "measurements.csv"
    path.write_text(FORMER + '"{""width"": 3}",9')  # killed while it wrote
    (old, failed) = read_measurements(path, SPACE)
    assert (old.latency_ms, np.isnan(old.energy_mj), failed.error) == (1.5, True, "too wide")
    measure(ARCHS[:2], Machine(lambda visits: 1 / 0).prepare, path, CONFIG)
    assert path.read_text().startswith(FORMER)  # nothing was to be done
    rows = measure(ARCHS[:3], Machine(lambda visits: 1.0).prepare, path, CONFIG, further=FURTHER)
    assert [row.error for row in rows] == ["", "too wide", ""]
    assert [row.energy_mj for row in rows if not row.error] == [3.0, 9.0]
    kept = [row for row in read_measurements(path, SPACE) if row.arch["width"] == 1 and not row.reference]
    assert [np.isnan(row.energy_mj) for row in kept] == [True, False]
    assert kept[0].runs == 27


def test_a_subnet_whose_further_cost_fails_is_recorded(tmp_path):
    def fails(arch, timer):
        raise RuntimeError(f"no memory for {arch['width']}")

    rows = measure(
        ARCHS[:2], Machine(lambda visits: 1.0).prepare, tmp_path / "m.csv", CONFIG, further={"energy_mj": fails}
    )
    assert [row.error for row in rows] == ["RuntimeError: no memory for 1", "RuntimeError: no memory for 2"]


def test_a_further_cost_is_a_positive_number_in_its_unit(tmp_path):
    path = tmp_path / "measurements.csv"
    path.write_text('arch,latency_ms,energy_mj\n"{""width"": 1}",2.5,-3\n')
    with pytest.raises(ValueError, match="line 2: an energy is a positive number of millijoules, not '-3'"):
        read_measurements(path, SPACE)
