import collections
import itertools

import numpy as np
import pytest

from supernet.families import FAMILIES
from supernet.space import SearchSpace
from supernet.training.methods.macs_bins import MacsBins
from supernet.training.step import TrainConfig
from supernet.training.train import make_method

SPACE = SearchSpace({name: (1, 2, 3, 4) for name in "abcd"})


def cost(arch):
    return sum(arch.values())  # 4 to 16, one architecture each at the ends and 44 in the middle


def test_bins_are_drawn_uniformly_and_so_are_the_architectures_of_a_bin():
    bins = MacsBins(SPACE, cost, 3.5, 6.5, 1.0)  # 4: 1 architecture, 5: 4, 6: 10
    generator = np.random.default_rng(0)
    drawn = collections.Counter(bins.sample(generator) for _ in range(600))
    counts = collections.Counter(cost(arch) for arch in drawn.elements())
    assert set(counts) == {4, 5, 6}
    spread = 5 * np.sqrt(600 * 1 / 3 * 2 / 3)  # five standard errors
    assert all(abs(count - 200) < spread for count in counts.values())
    every = [SPACE.validate(dict(zip("abcd", values))) for values in itertools.product((1, 2, 3, 4), repeat=4)]
    for macs, architectures in ((4, 1), (5, 4), (6, 10)):
        members = [arch for arch in every if cost(arch) == macs]
        assert len(members) == architectures
        expected = counts[macs] / architectures
        chi_squared = sum((drawn[arch] - expected) ** 2 / expected for arch in members)
        assert chi_squared < architectures - 1 + 5 * np.sqrt(2 * architectures)


def test_the_last_bin_ends_where_the_range_does():
    generator = np.random.default_rng(0)
    drawn = [cost(MacsBins(SPACE, cost, 5, 8, 2).sample(generator)) for _ in range(100)]
    assert set(drawn) == {5, 6, 7, 8}


def test_an_empty_bin_is_an_error():
    with pytest.raises(
        ValueError, match=r"no architecture of 20 to 30 million MACs .* have 4e-06 \(the smallest\) and"
    ):
        MacsBins(SPACE, cost, 20e6, 30e6, 10e6).sample(np.random.default_rng(0))


def test_spos_draws_from_bins_when_it_is_given_a_range():
    family = FAMILIES["shufflenet_spos"]()
    config = TrainConfig(method="spos", random_subnets=1, macs_range=(290.0, 360.0), macs_step=10.0)
    bins = make_method(family, config).bins
    assert (bins.lowest, bins.highest, bins.step) == (290e6, 360e6, 10e6)
    generator = np.random.default_rng(0)
    assert all(290e6 <= family.macs(bins.sample(generator)) <= 360e6 for _ in range(5))
    assert make_method(family, TrainConfig(method="spos")).bins is None


@pytest.mark.parametrize(
    "wrong", [{"method": "sandwich", "macs_range": (1.0, 2.0)}, {"method": "spos", "macs_range": (2.0, 2.0)}]
)
def test_a_range_that_says_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="macs_range is the fewest and the most millions of MACs, for the method spos"):
        TrainConfig(**wrong)
