"""What searches go by, on vision transformers: each works, or says in a line why it does not."""

import numpy as np
import pytest
import timm
import torch

from distill.blockwise import Teacher
from predictors import LatencyPredictor, family_costs
from search.blockwise.dna import BlockRating, DnaConfig
from search.prefix import trie
from search.scores.accuracy import resized
from search.scores.teacher_guided import FromSupernet, GuidanceConfig, TeacherGuided
from search.scores.untrained import NAMES, LabelledImages, build_untrained, score_architecture
from search.untrained.te_nas import TeNasConfig
from search.untrained.zero_cost import zen_score
from supernet.training.data import DataConfig, load_data
from tests.vision_transformers import small_vit

SETTINGS = TeNasConfig(repeats=1, ntk_images=4, region_images=8)


@pytest.fixture(scope="module")
def family():
    return small_vit(num_classes=5)


@pytest.fixture(scope="module")
def archs(family):
    generator = np.random.default_rng(0)
    return [family.space.smallest, family.space.largest, *(family.space.sample(generator) for _ in range(4))]


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2)


def images(count: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("regions", "naswot")])
def test_scores_of_untrained_networks_are_numbers(family, archs, name):
    batch = LabelledImages(images(), torch.arange(8) % 5, size=4)
    for arch in archs[:2]:
        assert np.isfinite(score_architecture(family, [name], arch, batch, 0, settings=SETTINGS)[name])


@pytest.mark.parametrize("name", ["regions", "naswot"])
def test_patterns_of_activations_need_layers_that_transformers_lack(family, archs, name):
    batch = LabelledImages(images(), torch.arange(8) % 5, size=4)
    with pytest.raises(ValueError, match=r"ReLU|cannot be counted in this space") as error:
        score_architecture(family, [name], archs[1], batch, 0, settings=SETTINGS)
    assert "\n" not in str(error.value)


def test_larger_transformers_score_higher_where_scores_add_up(family):
    smallest, largest = (build_untrained(family, arch, 0) for arch in (family.space.smallest, family.space.largest))
    assert zen_score(largest, images()) > zen_score(smallest, images(8)[..., :16, :16])


def test_beginnings_that_agree_run_once_and_change_nothing(family, archs):
    net = family.supernet().eval()
    judged = {size: [torch.nn.functional.interpolate(images(4), size)] for size in (16, 32)}
    batches = {size: trie.Batches([], own) for size, own in judged.items()}
    found = dict(trie.outputs(net, archs, batches.__getitem__, family.resolution))
    for index, arch in enumerate(archs):
        with torch.no_grad():
            torch.testing.assert_close(found[index], net(*judged[family.resolution(arch)], arch))


def test_teachers_guide(family, teacher, archs):
    judged = resized(images(4), images(12), torch.arange(12) % 5)
    score = TeacherGuided(
        FromSupernet(family.supernet().eval()),
        judged,
        family.resolution,
        Teacher(teacher, ("blocks.0", "blocks.1")),
        32,
        GuidanceConfig(images=6),
    )
    assert all(np.isfinite(score(archs[:2])))


def test_blocks_of_transformers_are_refused(family, teacher):
    data = load_data(DataConfig("digits"))
    judged = resized(images(4), images(12), torch.arange(12) % 5)
    with pytest.raises(ValueError, match="no maps") as error:
        BlockRating(family, data, judged, Teacher(teacher, ("blocks.0", "blocks.1")), DnaConfig())
    assert "\n" not in str(error.value)


def test_latency_is_predicted_from_costs(family):
    archs = [family.space.sample(np.random.default_rng(seed)) for seed in range(60)]
    latency = [1e-6 * family.macs(arch) + 0.1 * arch["depth"] for arch in archs]
    predictor = LatencyPredictor.fit(family.space, archs[:40], latency[:40], family_costs(family))
    found = predictor.predict(archs[40:]).latency_ms
    assert np.corrcoef(found, latency[40:])[0, 1] > 0.9
