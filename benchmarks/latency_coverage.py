"""Whether latency predictors know how wrong they are: coverage of 95 % intervals, reported against true errors.

A part of benchmarks/latency_prediction.py: `--parts coverage`. Synthetic devices here, FBNet's there. What the
predictor's constants were chosen by is neither: FBNet's validation devices, and synthetic ones from the hundredth on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from rich.progress import track
from scipy.stats import norm, spearmanr

from predictors import LatencyPredictor, family_costs
from predictors.latency import Cost
from supernet.families import FAMILIES
from supernet.space import SearchSpace

# n architectures

MEASUREMENTS = (10, 20, 30, 40, 50, 100, 300)
LEAST_WITHOUT_SOURCES = 30
ARCHITECTURES = 2000  # of the synthetic devices' space
HELD_OUT = 1000  # architectures that a fit is judged by


class Device(NamedTuple):
    """The latencies [n] of all architectures, and the relative noise of one measurement, 0 where it is in them."""

    latency_ms: np.ndarray
    noise: float = 0.0


def coverage_rows(
    table: str,
    space: SearchSpace,
    codes: np.ndarray,
    devices: Mapping[str, Device],
    sources: Sequence[LatencyPredictor | Cost],
    seeds: int,
    measurements: Sequence[int] = MEASUREMENTS,
) -> Iterator[dict]:
    """A row for each number of measurements, with sources and without: percent of held-out measurements within 1.96
    standard errors of their prediction, mean true and reported error, width of these intervals, and Spearman
    correlation; means over devices and seeds, with the standard error of the coverage's mean."""
    cells = [(True, count) for count in measurements]
    cells += [(False, count) for count in measurements if count >= LEAST_WITHOUT_SOURCES]
    for with_sources, count in track(cells, f"Coverage, {table}"):
        found = np.array(
            [
                _judged(
                    space, codes, device, sources if with_sources else (), count, np.random.default_rng([s, d, count])
                )
                for d, device in enumerate(devices.values())
                for s in range(seeds)
            ]
        )
        coverage, true, reported, width, spearman = found.mean(axis=0)
        yield {
            "table": table,
            "device": f"{len(devices)} devices",
            "method": "with sources" if with_sources else "without sources",
            "samples": count,
            "spearman": float(spearman),
            "mape_percent": float(true),
            "reported_percent": float(reported),
            "width_percent": float(width),
            "coverage_95": float(coverage),
            "coverage_error": float(found[:, 0].std(ddof=1) / np.sqrt(len(found))),
        }


def _judged(
    space: SearchSpace,
    codes: np.ndarray,
    device: Device,
    sources: Sequence[LatencyPredictor | Cost],
    count: int,
    generator: np.random.Generator,
) -> tuple[float, float, float, float, float]:
    measured_ms = device.latency_ms * np.exp(generator.normal(0, device.noise, len(codes)))
    shuffled = generator.permutation(len(codes))
    part, rest = shuffled[:count], shuffled[count : count + HELD_OUT]
    predictor = LatencyPredictor.fit(space, codes[part], measured_ms[part], sources)
    latency_ms, error_ms = predictor.predict(codes[rest])
    error = np.abs(latency_ms - measured_ms[rest])
    return (
        float(100 * (error <= norm.ppf(0.975) * error_ms).mean()),
        float(100 * (error / measured_ms[rest]).mean()),
        predictor.error_percent,
        float(100 * (2 * norm.ppf(0.975) * error_ms / measured_ms[rest]).mean()),
        float(spearmanr(latency_ms, measured_ms[rest]).statistic),
    )


def synthetic(count: int) -> tuple[SearchSpace, np.ndarray, dict[str, Device], list[Cost]]:
    """A space, codes of its architectures, `count` made-up devices, and MACs and parameters as sources.

    On each device a latency is a random mixture of powers of MACs and parameters, a cost a layer and one a large
    kernel; half of them add a fixed cost, all slow down beyond a size that does not fit their cache, by up to a third.
    """
    family = FAMILIES["mobilenet_v3_micro"](num_classes=10)
    draw = np.random.default_rng(5)
    archs = list(dict.fromkeys(family.space.sample(draw) for _ in range(ARCHITECTURES)))
    macs, parameters = (np.array([price(arch) for arch in archs], float) for price in (family.macs, family.parameters))
    layers = np.array([sum(v for name, v in arch.items() if name.endswith("depth")) for arch in archs])
    large = np.array([sum(v == 5 for name, v in arch.items() if name.endswith("kernel_size")) for arch in archs])
    macs, parameters = macs / macs.mean(), parameters / parameters.mean()
    devices = {}
    for number in range(count):
        generator = np.random.default_rng([number, 77])
        parts = [macs ** generator.uniform(0.6, 1.1), parameters ** generator.uniform(0.6, 1.1), layers / 6, large / 4]
        latency = np.tensordot(generator.dirichlet([0.6] * 4), parts, axes=1)
        latency = latency + generator.uniform(0, 1.5) * (generator.random() < 0.5)
        latency = latency * np.where(macs * parameters > generator.uniform(0.5, 2), 1 + generator.uniform(0, 1 / 3), 1)
        devices[f"synthetic_{number}"] = Device(latency, float(np.exp(generator.uniform(np.log(0.003), np.log(0.06)))))
    return family.space, family.space.encode(archs), devices, family_costs(family)


def summary(rows: Sequence[Mapping]) -> Iterator[tuple[str, float]]:
    """Coverage over all rows, its least and its most, and how much larger the true error is than the reported one."""
    coverage = [row["coverage_95"] for row in rows]
    yield "coverage_95", float(np.mean(coverage))
    yield "coverage_95_least", float(np.min(coverage))
    yield "coverage_95_most", float(np.max(coverage))
    ratios = [row["mape_percent"] / row["reported_percent"] for row in rows]
    yield "true_over_reported_error", float(np.mean(ratios))
