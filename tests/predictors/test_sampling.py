import numpy as np
import pytest

from predictors.sampling import distinct, graded, stratified
from supernet.families import FAMILIES
from supernet.space import Choice, SearchSpace

FAMILY = FAMILIES["ofa_mobilenet_v3"](num_classes=10)


def test_graded_architectures_reach_both_ends():
    space = SearchSpace({f"width.{i}": tuple(range(1, 12)) for i in range(20)})
    sums = [sum(arch.values()) for arch in graded(space, 300, np.random.default_rng(0))]
    uniform = np.random.default_rng(0)
    uniform_sums = [sum(space.sample(uniform).values()) for _ in range(300)]
    assert np.std(sums) > 3 * np.std(uniform_sums)
    assert min(sums) < 0.1 * 220 + 20
    assert max(sums) > 0.9 * 220


def test_unordered_choices_of_graded_architectures_are_uniform():
    space = SearchSpace({"operation": ("a", "b"), "width": (1, 2, 3)})
    share = np.mean([arch["operation"] == "a" for arch in graded(space, 2000, np.random.default_rng(0))])
    assert abs(share - 0.5) < 0.04


def test_stratified_subnets_are_distinct_half_uniform_and_spread_over_macs():
    archs = stratified(FAMILY.space, FAMILY.macs, 60, np.random.default_rng(0))
    assert len(set(archs)) == 60
    uniform, spread = (np.log([FAMILY.macs(arch) for arch in half]) for half in (archs[:30], archs[30:]))
    assert np.ptp(spread) > 1.5 * np.ptp(uniform)
    assert np.diff(np.sort(spread)).max() < 0.2


def test_a_small_space_is_drawn_from_as_far_as_it_goes():
    space = SearchSpace({"depth": (1, 2), "width": Choice((1, 2, 3), when={"depth": (2,)})})
    archs = stratified(space, lambda arch: sum(arch.values()), 4, np.random.default_rng(0))
    assert len(set(archs)) == 4 == space.size
    with pytest.raises(ValueError, match="the space has 4 architectures, fewer than 5"):
        stratified(space, lambda arch: sum(arch.values()), 5, np.random.default_rng(0))
    assert set(distinct(space, 4, np.random.default_rng(0))) == set(space)
    with pytest.raises(ValueError, match="the space has 4 architectures, fewer than 5"):
        distinct(space, 5, np.random.default_rng(0))
