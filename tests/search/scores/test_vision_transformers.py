"""What searches go by, on vision transformers: each works, or says in a line why it does not."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from distill.blockwise import Teacher
from predictors import LatencyPredictor, family_costs
from search.blockwise.dna import BlockRating, DnaConfig
from search.prefix import trie
from search.scores.accuracy import labelled, resized
from search.scores.teacher_guided import FromSupernet, GuidanceConfig, TeacherGuided
from search.scores.untrained import NAMES, LabelledImages, build_untrained, score_architecture
from search.untrained.te_nas import TeNasConfig
from search.untrained.zero_cost import zen_score
from supernet.training.data.tensors import TensorData
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
        labelled(judged),
        family.resolution,
        Teacher(teacher, ("blocks.0", "blocks.1")),
        32,
        GuidanceConfig(images=6),
    )
    assert all(np.isfinite(score(archs[:2])))


def rated_blocks(family, teacher, **options):
    batch = images(12), torch.arange(12) % 5
    config = DnaConfig(epochs=1, batch_size=6, **options)
    rating = BlockRating(family, TensorData(batch, batch, batch), labelled(resized(images(4), *batch)), teacher, config)
    return rating, [(block.name, block.target.name, block.target.size) for block in rating.blocks]


def test_blocks_end_between_layers(family, teacher):
    """Few enough paths a block; the class token is one of the tokens. Positions and class token are the first one's."""
    rating, ends = rated_blocks(family, Teacher(teacher), max_paths=100)
    assert ends == [("blocks.0", "blocks.0", (17,)), ("norm", "blocks.1", (17,))]
    first, second = rating.blocks
    assert first.scope == {"embed_dim", "blocks.0.num_heads", "blocks.0.mlp_ratio"}
    assert second.scope == set(family.space.choices) - {"resolution", "patch_size"} - first.scope | {"embed_dim"}
    assert rating.space.choices["patch_size"].values == (8,)
    names = set(first.net.state_dict())
    assert {"student.pos_embed", "student.cls_token", "student.blocks.0.attn.qkv.weight", "after.1.weight"} <= names
    path = first.path(rating.space.largest)
    output = first.net(images(2), path, accumulate=True)
    output.sum().backward()  # reaches what answers, and nothing before it yet, which is multiplied by zeros
    assert first.net.get_parameter("after.1.weight").grad.abs().sum() > 0
    with pytest.raises(ValueError, match="architectures are rated at a patch_size of 8, not 16"):
        rating.block_losses(family.space.validate({**family.space.largest, "patch_size": 16}))


@pytest.mark.parametrize("kind", ["convolution", pytest.param("other tokens", marks=pytest.mark.exhaustive)])
def test_blocks_of_transformers_imitate_maps(family, teacher, kind):
    """Of a convolutional teacher, or of one without a class token: their grids agree."""
    if kind == "convolution":
        layers = [nn.Sequential(nn.Conv2d(3, 7, 8, 8), nn.BatchNorm2d(7)), nn.Conv2d(7, 9, 3, padding=1)]
        taught = Teacher(nn.Sequential(*layers), ("0", "1"))
    else:
        options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
        model = timm.create_model("vit_tiny_patch16_224", class_token=False, global_pool="avg", **options)
        taught = Teacher(model, ("blocks.0", "blocks.1"))
    rating, ends = rated_blocks(family, taught, cuts=("blocks.0", "blocks"))
    assert [size for *_, size in ends] == [(4, 4), (4, 4)]
    second = rating.blocks[1]
    assert second.net.get_parameter("before.layout.prefix").shape == (1, 1, 32)  # a class token of the block's own
    seen, wanted = rating._teacher(images(2))
    for path in (second.net.space.smallest, second.net.space.largest):
        model = second.net.extract(path).eval()
        tokens = model.student(model.before(seen))
        assert tokens.shape == (2, 17, path["embed_dim"])
        torch.testing.assert_close(
            model.after(tokens), model.after[1:](tokens[:, 1:].transpose(1, 2).reshape(2, -1, 4, 4))
        )
        assert model(seen).shape == wanted.shape


def test_latency_is_predicted_from_costs(family):
    archs = [family.space.sample(np.random.default_rng(seed)) for seed in range(60)]
    latency = [1e-6 * family.macs(arch) + 0.1 * arch["depth"] for arch in archs]
    predictor = LatencyPredictor.fit(family.space, archs[:40], latency[:40], family_costs(family))
    found = predictor.predict(archs[40:]).latency_ms
    assert np.corrcoef(found, latency[40:])[0, 1] > 0.9
