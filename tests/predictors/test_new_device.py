"""A new device that is nothing like its sources: a fixed cost, and one by the size of the exported file."""

import numpy as np
import pytest

from predictors import LatencyPredictor, family_costs, stratified, suggest
from predictors.sampling import graded
from supernet.families import FAMILIES

FAMILY = FAMILIES["mobilenet_v3_micro"](num_classes=10)
SPACE = FAMILY.space
OF_ALL_SIZES = graded(SPACE, 500, np.random.default_rng(3))


def here(arch):
    """Mostly a cost a layer, then one by MACs."""
    return 0.02 + 0.02 * sum(value for name, value in arch.items() if name.endswith("depth")) + FAMILY.macs(arch) / 1e8


def there(arch):
    """3 ms and 4 us a KB of parameters: from 4.2 to 14.5 ms."""
    return 3 + 0.004 * 4 * FAMILY.parameters(arch) / 1024


@pytest.fixture(scope="module")
def sources():
    generator = np.random.default_rng(40)
    archs = stratified(SPACE, FAMILY.macs, 40, generator)
    costs = family_costs(FAMILY)
    latency = [here(arch) * generator.lognormal(0, 0.02) for arch in archs]
    return [LatencyPredictor.fit(SPACE, archs, latency, costs), *costs]


def test_what_is_suggested_reaches_the_smallest_and_the_largest(sources):
    latency = sorted(map(there, suggest(SPACE, 10, sources)))
    assert latency[0] < 4.3
    assert latency[-1] > 12


@pytest.mark.parametrize("seed", [0, 1])
def test_a_fixed_cost_is_found_from_ten_suggested_measurements(sources, seed):
    ten = suggest(SPACE, 10, sources)
    noise = np.random.default_rng(seed).normal(1, 0.03, 10)
    predictor = LatencyPredictor.fit(SPACE, ten, noise * [there(arch) for arch in ten], sources)
    true = np.array([there(arch) for arch in OF_ALL_SIZES])
    latency_ms, standard_error_ms = predictor.predict(OF_ALL_SIZES)
    small = true < 4.8
    assert small.sum() > 50
    within = np.abs(latency_ms - true) < 1.96 * standard_error_ms
    assert within[small].mean() > 0.9
    assert within.mean() > 0.9
    assert latency_ms[small].mean() == pytest.approx(true[small].mean(), rel=0.05)
    assert 100 * np.abs(latency_ms / true - 1).mean() < predictor.error_percent * 1.2


def test_ten_arbitrary_measurements_know_how_wrong_they_are(sources):
    """None of them need be among the smallest, where the fixed cost is most of the latency.

    Intervals of two thirds the width hold 89 % of measurements in these draws, half as wide again 98.5 %.
    """
    true = np.array([there(arch) for arch in OF_ALL_SIZES])
    within = []
    for seed in range(16):
        generator = np.random.default_rng([seed, 9])
        ten = [SPACE.sample(generator) for _ in range(10)]
        noise = generator.normal(1, 0.03, 10)
        predictor = LatencyPredictor.fit(SPACE, ten, noise * [there(arch) for arch in ten], sources)
        latency_ms, standard_error_ms = predictor.predict(OF_ALL_SIZES)
        measured = true * generator.normal(1, 0.03, len(true))
        within.append((np.abs(latency_ms - measured) < 1.96 * standard_error_ms).mean())
    assert 0.9 < np.mean(within) < 0.98, within
