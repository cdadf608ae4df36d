"""What searches go by, on transformers of other families than `vit` (test_vision_transformers.py): each works, or says
in a line why it does not."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.blockwise import Teacher
from distill.layers import recorded
from distill.rdm import dissimilarity, rdm_similarity
from predictors import LatencyPredictor, family_costs
from predictors.sampling import distinct
from search.blockwise.dna import BlockRating, DnaConfig
from search.problem import Problem
from search.scores.accuracy import SupernetScore, first_metric, held_out, labelled, resized
from search.scores.judges import make_judge
from search.scores.teacher_guided import FromSupernet, GuidanceConfig, TeacherGuided, of_examples
from search.scores.untrained import NAMES, LabelledImages, score_architecture
from search.settings import SearchJob
from search.untrained.te_nas import TeNasConfig
from supernet.artifacts.runs import Job, Run
from supernet.artifacts.subnet import Subnet, SubnetConfig, save_subnet
from supernet.artifacts.teacher import load_teacher
from supernet.calibration import calibrate
from supernet.evaluation import calibrated
from supernet.families import FAMILIES, from_timm
from supernet.families.autoformer import _autoformer, _Network
from supernet.families.named import make_family
from supernet.training.data import DataConfig
from supernet.training.data.tensors import TensorData

CLASSES, SIDE, VOCABULARY, LENGTH = 5, 32, 13, 6
SWIN = {"embed_dim": 16, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4, "patch_size": 4, "img_size": SIDE}
TEXT = {"vocabulary": VOCABULARY, "length": LENGTH, "embed_dim": [16, 32], "depth": [1, 2], "head_dim": 8}
FAMILY = {
    "autoformer": lambda: _autoformer(
        _Network(
            (16, 24), (1, 2), (1, 2), (1.0, 2.0), CLASSES, 3, relative_positions=True, input_size=SIDE, patch_size=8
        )
    ),
    "swin": lambda: from_timm(
        "swin_tiny_patch4_window7_224",
        num_classes=CLASSES,
        input_size=SIDE,
        saved_config={"pretrained_cfg": {"input_size": (3, SIDE, SIDE)}, "model_args": SWIN},
    ),
    "text_encoder": partial(FAMILIES["text_encoder"], num_classes=CLASSES, **TEXT),
    "text_decoder": partial(FAMILIES["text_decoder"], **TEXT),
}
IMAGES = ("autoformer", pytest.param("swin", marks=pytest.mark.exhaustive))
TEXTS = ("text_encoder", "text_decoder")
OF_PATTERNS = ("naswot", "regions")  # of which activations are on, which GELU does not tell
OF_IMAGES = ("jacob_cov", "zen_score")  # whose inputs are numbers that may change a little
SETTINGS = TeNasConfig(repeats=1, ntk_images=4, region_images=8)


@pytest.fixture(scope="module", params=FAMILY)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def family(name):
    return FAMILY[name]()


@pytest.fixture(scope="module")
def archs(family):
    return [family.space.smallest, family.space.largest, *distinct(family.space, 3, np.random.default_rng(0))]


@pytest.fixture(scope="module")
def net(family):
    return family.supernet().eval()


def drawn() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def tokens(count: int) -> Tensor:
    """Texts of several lengths, filled up with the token 0."""
    found = torch.randint(1, VOCABULARY, (count, LENGTH), generator=drawn())
    return torch.where(torch.arange(LENGTH) < 2 + torch.arange(count)[:, None] % (LENGTH - 1), found, 0)


def batch_of(name: str, count: int = 8):
    """A batch as the task of the family takes it."""
    labels = torch.arange(count) % CLASSES
    if name == "text_decoder":
        return torch.randint(1, VOCABULARY, (count, LENGTH), generator=drawn())
    return (tokens(count) if name == "text_encoder" else torch.randn(count, 3, SIDE, SIDE, generator=drawn())), labels


def examples(name: str, family) -> LabelledImages:
    batch = batch_of(name)
    if name == "text_decoder":
        return LabelledImages(batch[:, :-1], batch[:, 1:])
    inputs = family.task.inputs(batch, None)
    return LabelledImages(inputs if len(inputs) > 1 else inputs[0], batch[1])


@pytest.mark.parametrize("score", NAMES)
def test_scores_of_untrained_networks_are_numbers_or_say_why_not(name, family, score):
    """A search refuses the names in OF_PATTERNS and OF_IMAGES by these lines."""
    run = partial(score_architecture, family, [score], family.space.largest, examples(name, family), settings=SETTINGS)
    if score in OF_PATTERNS or (score in OF_IMAGES and name in TEXTS):
        with pytest.raises(ValueError, match=r"ReLU|cannot be counted in this space|needs images") as error:
            run()
        assert "\n" not in str(error.value)
    else:
        assert np.isfinite(run()[score])
        assert abs(run()[score]) < 1e29  # above the score of a dead network


def test_the_kernel_and_gradients_do_not_see_what_fills_up_a_text():
    family = FAMILY["text_encoder"]()
    given = tokens(8)
    other = torch.where(given == 0, 7, given)
    mask, labels = (given != 0).long(), torch.arange(8) % CLASSES
    found = [
        score_architecture(family, ["ntk", "snip"], family.space.largest, LabelledImages(i, labels), settings=SETTINGS)
        for i in ((given, mask), (other, mask), (other, torch.ones_like(mask)))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0]["snip"] != pytest.approx(found[2]["snip"], rel=1e-3)


def test_beginnings_that_agree_change_nothing(name, family, net, archs):
    """Of text encoders the mask goes along."""
    batch = batch_of(name)
    data = TensorData(batch, batch, batch)
    score = SupernetScore(net, family.task, partial(held_out, data, 8, 0, None), family.resolution)
    for arch, found in zip(archs, score(archs)):
        inputs = family.task.inputs(batch, arch)
        with torch.no_grad():
            output = calibrated(net, arch, [inputs])(*inputs)
        assert found == pytest.approx(first_metric(family.task, output, batch), abs=1e-6)


def test_latency_is_predicted_from_costs(family):
    archs = [family.space.sample(np.random.default_rng(seed)) for seed in range(60)]
    latency = [1e-6 * family.macs(arch) + 1e-6 * family.parameters(arch) for arch in archs]
    predictor = LatencyPredictor.fit(family.space, archs[:40], latency[:40], family_costs(family))
    assert np.corrcoef(predictor.predict(archs[40:]).latency_ms, latency[40:])[0, 1] > 0.9


def teacher_of(family) -> torch.nn.Module:
    torch.manual_seed(0)
    return family.build(family.space.largest).eval()


@pytest.mark.parametrize("name", IMAGES)
def test_teachers_guide_image_families(name):
    family = FAMILY[name]()
    model = teacher_of(family)
    points = ("layers.0", "layers.1") if name == "swin" else ("blocks.0", "blocks.1")
    judged = resized(*(batch_of(name, 12)[0][:count] for count in (4, 12)), torch.arange(12) % CLASSES)
    score = TeacherGuided(
        FromSupernet(family.supernet().eval()),
        labelled(judged),
        family.resolution,
        Teacher(model, points),
        32,
        GuidanceConfig(images=6),
    )
    assert np.isfinite(score([family.space.smallest, family.space.largest])).all()


def test_what_fills_up_a_text_is_not_told_apart():
    """The mean over a text's tokens, which is that of the text alone."""
    features, mask = torch.randn(3, 4, 5), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    expected = [own[: int(length)].mean(0) for own, length in zip(features, mask.sum(1))]
    torch.testing.assert_close(of_examples(features, mask), torch.stack(expected))
    assert of_examples(features.mean(1), mask).shape == (3, 5)


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_teacher_guides(name):
    """Against its definition: the accuracy, and how alike the teacher's last block and the best of the layers are."""
    family, batch = FAMILY[name](), batch_of(name, 12)
    teacher, arch = Teacher(teacher_of(family)), family.space.smallest
    batches = partial(held_out, TensorData(batch, batch, batch), 4, 0, None)
    net = family.supernet().eval()
    score = TeacherGuided(
        FromSupernet(net), batches, family.resolution, teacher, None, GuidanceConfig(images=12), task=family.task
    )
    inputs = family.task.inputs(batch, arch)
    mask, model = family.task.mask(inputs), net.extract(arch).eval()
    assert teacher.points == ("blocks.1",)
    (wanted,) = (dissimilarity(of_examples(own, mask)) for own in teacher(*inputs))
    layers = [name for name in ("embeddings", "blocks.0", "norm", "head") if name in dict(model.named_modules())]
    with torch.no_grad(), recorded(model, layers) as found:
        output = model(*inputs)
    own = [rdm_similarity(dissimilarity(of_examples(found[layer], mask)), wanted) for layer in layers]
    assert score([arch]) == pytest.approx([first_metric(family.task, output, batch) + max(own)], abs=1e-5)


@pytest.mark.parametrize(
    "name", ["text_encoder", *(pytest.param(n, marks=pytest.mark.exhaustive) for n in FAMILY if n != "text_encoder")]
)
def test_blocks_imitate_a_teacher_of_their_kind(name):
    """From tokens to tokens, or maps to maps whose channels come last: a path's rating is its loss by hand, and the
    best architecture is that of an enumeration."""
    family = FAMILY[name]()
    few = ("embed_dim", "depth", "blocks.0.mlp_ratio", "patch_embed.proj.width", "layers.1.blocks.depth")
    space = family.space.restrict(
        {
            n: choice.values[:: 1 if n in few else -1][: 2 if n in few else 1]
            for n, choice in family.space.choices.items()
        }
    )
    family, batch = dataclasses.replace(family, space=space), batch_of(name, 16)
    teacher = teacher_of(FAMILY[name]())  # which is wider, deeper, or both
    data = TensorData(batch, batch, batch)
    batches = partial(held_out, data, 8, 0, None)
    rating = BlockRating(family, data, batches, Teacher(teacher), DnaConfig(epochs=2, batch_size=8))
    assert [block.target.is_tokens for block in rating.blocks] == [False, False] if name == "swin" else [True]
    rating.prepare()
    calibrating, inputs = (family.task.inputs(part, None) for part in batches(rating.resolution))
    mask = family.task.mask(inputs)
    seen, target = ([part[0], *rating._teacher(*part)] for part in (calibrating, inputs))
    for index, (block, losses) in enumerate(zip(rating.blocks, rating.losses)):
        assert len(set(losses.values())) == len(losses) == block.net.space.size > 1
        for path, loss in losses.items():
            model = block.net.extract(path).eval()
            calibrate(model, [(seen[index], *calibrating[1:])])
            with torch.no_grad():
                own = model(target[index], *inputs[1:])
            wanted = target[index + 1]
            own, wanted = (y if mask is None else y[mask == 1] for y in (own, wanted))
            assert loss == pytest.approx(((own - wanted).abs().mean() / wanted.std()).item(), rel=1e-5)
    best = next(rating.best_first(Problem(space, ["dna"], {}, {})))
    assert rating([best])[0] == max(rating(list(space)))


class Texts(TensorData):
    """Texts with a tokenizer."""

    def files(self):
        return {"tokenizer.json": "words"}


@pytest.mark.parametrize("score", ["rdm", "dna"])
def test_a_subnet_teaches_texts_in_a_search(tmp_path, score):
    options = json.dumps({**TEXT, "mlp_ratio": [1], "num_heads": [2]})
    family = make_family("text_encoder", options, {"num_classes": CLASSES})
    batch = batch_of("text_encoder", 16)
    data = Texts(batch, batch, batch, classes=tuple("abcde"), family_arguments={"num_classes": CLASSES})
    config = SubnetConfig.of("text_encoder", options, family.space.largest, data)
    save_subnet(tmp_path / "teacher", Subnet(config.build().eval(), config), onnx=False)
    run = Run(family, family.supernet().eval(), data, Job("text_encoder", options))
    job = SearchJob(score=score, teacher=str(tmp_path / "teacher"), dna=DnaConfig(epochs=1, batch_size=8))
    with pytest.raises(ValueError, match=r"was trained with another tokenizer\.json"):
        make_judge(job, run, tmp_path)
    (tmp_path / "teacher" / "tokenizer.json").write_text("words")
    judge = make_judge(job, run, tmp_path)
    judge.prepare()
    found = judge.score(list(family.space))
    assert np.isfinite(found).all()
    assert len(set(found)) == family.space.size == 4
    with pytest.raises(ValueError, match=r"takes tokens and mask, where what is taught takes images") as error:
        load_teacher(tmp_path / "teacher", DataConfig(), tuple("abcde"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("score", ["rdm", "dna", "te_nas", "akd"])
def test_what_takes_images_is_refused_for_texts(tmp_path, name, score):
    family = FAMILY[name]()
    batch = batch_of(name)
    run = Run(family, family.supernet().eval(), TensorData(batch, batch, batch), Job())
    with pytest.raises(ValueError, match=r"classes|images|counted") as error:
        make_judge(SearchJob(score=score, teacher="resnet18"), run, tmp_path)
    assert "\n" not in str(error.value)


def test_texts_are_searched_without_training(tmp_path):
    family = FAMILY["text_encoder"]()
    batch = tokens(16), torch.arange(16) % CLASSES
    run = Run(family, family.supernet().eval(), TensorData(batch, batch, batch), Job())
    judge = make_judge(SearchJob(score="zero_cost", zero_cost=("snip", "synflow"), population=4), run, tmp_path)
    smallest, largest = judge.score([family.space.smallest, family.space.largest])
    assert np.isfinite([smallest, largest]).all()
