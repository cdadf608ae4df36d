import numpy as np
import pytest
import torch

from search.scores.untrained import NAMES, LabelledImages, TrainingFreeScore, build_untrained, score_architecture
from search.untrained.ensemble import majority_vote, mean_rank
from search.untrained.proxies import nasbench201_proxies
from search.untrained.te_nas import TeNasConfig, condition_numbers, measure_architecture
from search.untrained.zero_cost import snip
from supernet.families import FAMILIES

SMALL = TeNasConfig(repeats=1, ntk_images=4, region_images=40, batch_norm="frozen")


@pytest.fixture(scope="module")
def family():
    return FAMILIES["nasbench201"](channels=4, cells=1)


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    return LabelledImages(torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8), size=4)


@pytest.fixture(scope="module")
def archs(family):
    generator = np.random.default_rng(1)
    return [family.space.sample(generator) for _ in range(3)]


def test_every_score_has_a_name_and_follows_from_the_seed(family, batch, archs):
    scores = score_architecture(family, NAMES, archs[0], batch, 3, nasbench201_proxies(), SMALL)
    assert tuple(scores) == NAMES
    assert all(np.isfinite(list(scores.values())))
    assert scores == score_architecture(family, NAMES, archs[0], batch, 3, nasbench201_proxies(), SMALL)
    assert scores["snip"] == snip(build_untrained(family, archs[0], 3), batch.images[:4], batch.labels[:4])
    assert scores["macs"] == family.macs(archs[0])
    measured = measure_architecture(nasbench201_proxies(), archs[0], batch.images, SMALL, 3)
    assert (-scores["ntk"], scores["regions"]) == measured


def test_without_proxies_the_kernel_is_that_of_the_network(family, batch, archs):
    scores = score_architecture(family, ["ntk"], archs[0], batch, settings=SMALL)
    assert scores["ntk"] == -condition_numbers(family.build(archs[0]), batch.images, SMALL, 0).mean()


def test_images_are_resized_to_the_architecture(batch):
    family = FAMILIES["mobilenet_v3_micro"]()
    small, large = family.space.smallest, family.space.largest
    assert family.resolution(small) < family.resolution(large)
    for arch in (small, large):
        scores = score_architecture(family, ["synflow", "naswot"], arch, batch)
        assert all(np.isfinite(list(scores.values())))


def test_one_score_is_given_as_it_is(family, batch, archs):
    score = TrainingFreeScore(family, ["parameters"], batch)
    assert score(archs) == [family.parameters(arch) for arch in archs]
    assert score([]) == []


@pytest.mark.parametrize(
    ("name", "combine", "members"),
    [("te_nas", mean_rank, ("ntk", "regions")), ("vote", majority_vote, ("synflow", "jacob_cov", "snip"))],
)
def test_ensembles_rank_among_a_fixed_reference(name, combine, members, family, batch, archs):
    score = TrainingFreeScore(family, [name], batch, 5, nasbench201_proxies(), SMALL, reference=4)
    generator = np.random.default_rng(5)
    reference = [family.space.sample(generator) for _ in range(4)]

    def rows(archs):
        scored = [score_architecture(family, members, a, batch, 5, nasbench201_proxies(), SMALL) for a in archs]
        return [[scores[member] for scores in scored] for member in members]

    together = score(archs)
    assert together == combine(rows(archs), rows(reference)).tolist()
    assert together == [value for arch in archs for value in score([arch])]


def test_several_scores_are_ranked(family, batch, archs):
    both = TrainingFreeScore(family, ["macs", "parameters"], batch, reference=20)(archs)
    order = np.argsort([family.macs(arch) for arch in archs])
    assert np.all(np.diff(np.array(both)[order]) >= 0)
    assert all(0 <= value <= 1 for value in both)


def test_building_leaves_the_global_generator_alone(family, archs):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    build_untrained(family, archs[0], 7)
    assert torch.rand(1) == expected


def test_bad_input_is_named(family, batch):
    with pytest.raises(ValueError, match="no score 'syncflow'; scores are grad_norm"):
        TrainingFreeScore(family, ["syncflow"], batch)
    with pytest.raises(ValueError, match="no score 'vote'"):
        TrainingFreeScore(family, ["vote", "macs"], batch)
    with pytest.raises(ValueError, match="name at least one score"):
        TrainingFreeScore(family, [], batch)
    with pytest.raises(ValueError, match="regions cannot be counted in this space"):
        TrainingFreeScore(family, ["te_nas"], batch)
