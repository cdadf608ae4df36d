"""RatedBlocks of a small family with a width that two blocks share: cutting, training, rating, assembling."""

import dataclasses
import itertools
import json
import shutil
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from distill.blockwise import Teacher, relative_deviation
from search.blockwise.assembly import assemble
from search.blockwise.blocks import cut_blocks
from search.blockwise.cuts import given_cuts, matching_cuts
from search.blockwise.dna import VERSION, BlockRating, DnaConfig, rate_paths
from search.blockwise.features import Feature
from search.blockwise.training import train_blocks
from search.prefix.dependence import Dependence
from search.problem import Problem
from search.scores.accuracy import labelled, resized
from supernet import Choice, SearchSpace
from supernet.calibration import calibrate
from supernet.families import Family
from supernet.training.data import DataConfig, load_data
from supernet.training.execution import Execution
from supernet.training.loop.checkpoint import save_checkpoint

SPACE = SearchSpace(
    {
        "width.0": (4, 6),
        "depth.0": (1, 2),
        "kernel_size.1": Choice((1, 3), when={"depth.0": (2,)}),
        "kernel_size.2": (1, 3, 5),
        "width.3": (4, 8),
        "head": (8, 12),
    }
)
CUTS = ("stages.0", "stages.1")


def convolution(in_chs, out_chs, kernel_size, stride=1):
    conv = nn.Conv2d(in_chs, out_chs, kernel_size, stride, kernel_size // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_chs), act=nn.ReLU()))


def build(arch):
    width, last, head = arch["width.0"], arch["width.3"], arch["head"]
    first = [convolution(3, width, 3, 2)]
    if arch["depth.0"] == 2:
        first.append(convolution(width, width, arch["kernel_size.1"]))
    second = [convolution(width, 8, arch["kernel_size.2"], 2), convolution(8, last, 1)]
    top = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, head), nn.ReLU(), nn.Linear(head, 10))
    stages = nn.Sequential(nn.Sequential(*first), nn.Sequential(*second))
    return nn.Sequential(OrderedDict(stages=stages, top=top))


def macs(arch):
    """Multiply-accumulates of the convolutions: what is shared by both blocks multiplies what is their own."""
    inner = 16 * (arch["width.0"] * arch["kernel_size.1"]) ** 2 if arch["depth.0"] == 2 else 0
    return 16 * 27 * arch["width.0"] + inner + 4 * 8 * (arch["width.0"] * arch["kernel_size.2"] ** 2 + arch["width.3"])


FAMILY = Family(SPACE, build, num_classes=10, input_size=8, macs=macs)


def teacher(channels=(5, 8)):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            OrderedDict(a=convolution(3, channels[0], 3, 2), b=convolution(channels[0], channels[1], 3, 2))
        )
    return Teacher(model, ("a", "b"))


def features(model, size=8):
    return [
        Feature(n, y.shape[1], tuple(y.shape[2:])) for n, y in zip(model.points, model(torch.zeros(2, 3, size, size)))
    ]


@pytest.fixture(scope="module")
def data():
    whole = load_data(DataConfig(crop_pct=1.0))
    return dataclasses.replace(whole, train=torch.utils.data.Subset(whole.train, range(64)))


@pytest.fixture(scope="module")
def images(data):
    return resized(data.images(data.train, 8, 30)[0], *data.images(data.holdout, 8, 30))


def block_rating(data, images, *args, **options):
    return BlockRating(FAMILY, data, labelled(images), *args, **options)


@pytest.fixture(scope="module")
def rating(data, images, tmp_path_factory):
    directory = tmp_path_factory.mktemp("dna")
    rating = block_rating(data, images, teacher(), DnaConfig(epochs=2, batch_size=16), directory=directory)
    rating.prepare()
    return rating


def test_blocks_depend_on_their_own_choices_and_the_width_between_them():
    dependence = Dependence.of_family(FAMILY, SPACE)
    found = dependence.scopes(CUTS)
    dependence.check(CUTS, found)
    assert found == [
        {"width.0", "depth.0", "kernel_size.1"},
        {"width.0", "kernel_size.2", "width.3"},
    ]


def test_paths_are_all_architectures_of_a_block():
    archs = list(SPACE)
    assert len(set(archs)) == len(archs) == SPACE.size
    first = SPACE.subspace({"width.0", "depth.0", "kernel_size.1"})
    assert first.size == 6 == len(list(first))
    assert SPACE.complete({"width.0": 4}) == SPACE.validate({**SPACE.largest, "width.0": 4})


def test_blocks_end_to_end_compute_what_the_network_does():
    """With a teacher of the student's widths there is no adapter before a block, and the blocks are the network."""
    space = SPACE.restrict({"width.0": [6], "width.3": [8]})
    family = dataclasses.replace(FAMILY, space=space)
    net = family.supernet().eval()
    blocks = cut_blocks(family, space, given_cuts(family, space, features(teacher((6, 8))), CUTS))
    for block in blocks:
        state = block.net.state_dict()
        assert not any(name.startswith("before") for name in state)
        whole = {f"student.{name}": tensor for name, tensor in net.state_dict().items()}
        block.net.load_state_dict({name: whole.get(name, tensor) for name, tensor in state.items()})
        block.net.eval()
    x = torch.randn(3, 3, 8, 8)
    for arch in space:
        expected = net.extract(arch).stages(x)
        y = x
        for block in blocks:
            y = block.net.extract(block.path(arch)).student(y)
        assert torch.equal(y, expected)


def test_adapters_stand_where_widths_differ():
    first, second = cut_blocks(FAMILY, SPACE, given_cuts(FAMILY, SPACE, features(teacher()), CUTS))
    shapes = {name: tuple(tensor.shape) for name, tensor in first.net.state_dict().items()}
    assert shapes["after.0.weight"] == (5, 6, 1, 1)
    assert not any(name.startswith("before") for name in shapes)
    shapes = {name: tuple(tensor.shape) for name, tensor in second.net.state_dict().items()}
    assert shapes["before.0.weight"] == (6, 5, 1, 1)
    assert shapes["after.0.weight"] == (8, 8, 1, 1)
    for path in second.net.space:
        assert second.net(torch.zeros(2, 5, 4, 4), path).shape == (2, 8, 2, 2)


def test_resolutions_are_matched():
    others = [Feature("x", 3, (8, 8)), *features(teacher()), Feature("y", 3, (1, 1))]
    cuts = matching_cuts(FAMILY, SPACE, others, max_paths=12)
    assert [(cut.target.name, cut.name) for cut in cuts] == [
        ("a", "stages.0"),
        ("b", "stages.1.1.act"),  # the innermost that every subnet has
    ]
    with pytest.raises(ValueError, match=r"it has a \(16x16\), b \(8x8\), and that has stages.0.0.conv \(4x4\), .*2x2"):
        matching_cuts(FAMILY, SPACE, features(teacher(), 32), 100)


def test_what_does_not_match_is_listed():
    with pytest.raises(ValueError, match=r"has 2 features \(a \(4x4\), b \(2x2\)\), but the supernet is cut 1 times"):
        given_cuts(FAMILY, SPACE, features(teacher()), CUTS[:1])
    with pytest.raises(
        ValueError, match=r"ends with 'stages.0' has features of 4x4, and the teacher's at 'b' have 2x2"
    ):
        given_cuts(FAMILY, SPACE, features(teacher())[::-1], CUTS)
    with pytest.raises(ValueError, match=r"no feature at 'layers.0'; it has stages.0.0.conv \(4x4\), "):
        given_cuts(FAMILY, SPACE, features(teacher()), ("layers.0", "stages.1"))
    with pytest.raises(
        ValueError, match=r"cannot be cut behind 'stages.0'; in their order there are stages.0, stages.1, top"
    ):
        given_cuts(FAMILY, SPACE, features(teacher())[:1] * 2, ("stages.0", "stages.0"))


def test_features_without_positions_are_refused(data, images):
    flat = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), ("1",))
    with pytest.raises(ValueError, match=r"imitate maps .*, and the teacher's features at '1' are neither"):
        block_rating(data, images, flat, DnaConfig())


def test_a_block_of_too_many_paths_is_cut_once_more():
    """The second of 12 paths is cut behind its first layer, where the teacher has a feature of that size, too."""
    others = [*features(teacher()), Feature("c", 7, (2, 2)), Feature("d", 9, (2, 2))]
    cuts = matching_cuts(FAMILY, SPACE, others, max_paths=11)
    assert [(cut.target.name, cut.name) for cut in cuts] == [
        ("a", "stages.0"),
        ("c", "stages.1.0.act"),
        ("d", "stages.1.1.act"),
    ]
    assert [SPACE.subspace(cut.scope).size for cut in cuts] == [6, 6, 2]
    assert [block.net.space.size for block in cut_blocks(FAMILY, SPACE, cuts)] == [6, 6, 2]
    with pytest.raises(
        ValueError, match=r"'stages.1.1.act' has 12 paths, and beyond 11 .* teacher has b \(2x2\) there"
    ):
        matching_cuts(FAMILY, SPACE, features(teacher()), max_paths=11)
    with pytest.raises(ValueError, match=r"'stages.0' has 6 paths, .* cut behind no other module"):
        matching_cuts(FAMILY, SPACE, others, max_paths=5)


def test_too_many_paths_are_counted(data, images):
    with pytest.raises(ValueError, match=r"stages.0, stages.1 have 6, 12 paths; beyond 10 there are too many"):
        block_rating(data, images, teacher(), DnaConfig(cuts=CUTS, max_paths=10))


def test_a_path_is_rated_by_its_own_statistics(rating, images):
    """Every rating is that of the extracted, calibrated path by itself."""
    calibration, judges, *_ = images(8)
    seen, target = teacher()(calibration), teacher()(judges)
    for index, (block, losses) in enumerate(zip(rating.blocks, rating.losses)):
        assert list(losses) == list(block.net.space)
        for path, loss in losses.items():
            model = block.net.extract(path).eval()
            calibrate(model, [[calibration, *seen][index]])
            with torch.no_grad():
                output = model([judges, *target][index])
            assert loss == pytest.approx(relative_deviation(output, target[index]).item(), rel=1e-6)


@pytest.mark.parametrize("scale", [0.03, pytest.param(30.0, marks=pytest.mark.exhaustive)])
def test_blocks_are_never_worse_than_the_mean(data, images, tmp_path, scale):
    """Whatever the scale of the teacher's features, which Adam would not reach in 16 steps, by its learning rate each.
    A learning rate of next to nothing shows what the mean is worth in each batch: 1, but for how the batch differs."""
    taught = teacher()
    for stage in taught.model:
        stage.bn.weight.mul_(scale)
        stage.bn.bias.add_(0.1).mul_(scale)

    def losses(lr):
        config, found = DnaConfig(epochs=4, batch_size=16, lr=lr), []
        rating = block_rating(data, images, taught, config)
        train_blocks(
            dict(enumerate(rating.blocks)),
            rating._teacher,
            data,
            8,
            config.for_loop(0),
            tmp_path / str(lr),
            Execution("cpu", eval_epochs=0, log_steps=1),
            on_step=lambda result: found.append(result.losses),
        )
        return np.array(found)

    learnt, mean = losses(DnaConfig.lr), losses(1e-9)
    assert mean.shape == (16, 2)
    assert mean[0] == pytest.approx(learnt[0], rel=1e-5)
    assert np.mean(mean) < 1.05
    assert np.max(learnt - mean) < 0.01
    assert np.mean(learnt[8:]) < np.mean(mean[8:]) - 0.01


def test_training_makes_blocks_imitate_the_teacher(data, images):
    rating = block_rating(data, images, teacher(), DnaConfig(epochs=8, batch_size=16, lr=0.02))
    untrained = rating.rate()
    rating.train()
    for before, after in zip(untrained, rating.rate()):
        assert np.mean(list(after.values())) < np.mean(list(before.values()))


def test_blocks_of_neighbouring_seeds_start_from_weights_of_their_own():
    """The second block of a seed is not the first of the next."""
    same = dataclasses.replace(FAMILY, space=SPACE.restrict({"width.0": [6], "width.3": [8]}))
    cuts = given_cuts(same, same.space, features(teacher((6, 8))), CUTS)
    stems = [cut_blocks(same, same.space, [cuts[0]], seed)[0].net.state_dict() for seed in (0, 1)]
    name = "student.stages.0.0.conv.weight"
    assert not torch.equal(stems[0][name], stems[1][name])
    layers = {
        f"{seed} {index}": next(iter(block.net.state_dict().values())).flatten()[:20]
        for seed in (0, 1)
        for index, block in enumerate(cut_blocks(same, same.space, cuts, seed))
    }
    drawn = [values / values.abs().max() for values in layers.values()]
    assert not any(torch.allclose(a, b) for a, b in itertools.combinations(drawn, 2))


def test_interrupted_training_ends_in_the_same_ratings(data, images, rating, tmp_path):
    class Killed(Exception):
        pass

    def kill(result):
        if result.step == 6:  # in the second epoch of four steps
            raise Killed

    config = DnaConfig(epochs=2, batch_size=16)
    with pytest.raises(Killed):
        block_rating(data, images, teacher(), config, directory=tmp_path, on_step=kill).prepare()
    again = block_rating(data, images, teacher(), config, directory=tmp_path)
    again.prepare()
    assert again.losses == rating.losses

    def never(*_):
        raise AssertionError("trained again")

    read = block_rating(data, images, teacher(), config, directory=tmp_path, on_step=never)
    read.prepare()
    assert read.losses == rating.losses
    fewer = resized(images(8).calibration[:20], *images(8)[1:3])
    rated_anew = block_rating(data, fewer, teacher(), config, directory=tmp_path, on_step=never)
    rated_anew.prepare()
    assert rated_anew.losses != rating.losses
    with pytest.raises(ValueError, match=r"trained otherwise \(seed is 0, not 1\): name another output"):
        block_rating(data, images, teacher(), config, seed=1, directory=tmp_path).prepare()
    assert json.loads((tmp_path / "ratings.json").read_text())["blocks"][0]["name"] == "stages.0"


def test_a_rating_goes_on_where_it_was_stopped(data, images, rating, tmp_path, monkeypatch):
    monkeypatch.setattr("search.blockwise.dna.CHUNK", 2)
    judged, config = [], DnaConfig(epochs=2, batch_size=16)

    def stopped(output, target):
        judged.append(1)
        if len(judged) == 8:  # in the second block
            raise KeyboardInterrupt
        return relative_deviation(output, target)

    monkeypatch.setattr("search.blockwise.dna.relative_deviation", stopped)
    sizes = [len(losses) for losses in rating.losses]
    assert sizes[0] == 6
    with pytest.raises(KeyboardInterrupt):
        block_rating(data, images, teacher(), config, directory=tmp_path).prepare()
    steps, again = [], block_rating(data, images, teacher(), config, directory=tmp_path)
    again._on_step = steps.append
    again.prepare()
    assert not [step for step in steps if step.losses]
    assert len(judged) == 8 + sum(sizes) - 6
    assert again.losses == rating.losses
    assert [list(losses) for losses in again.losses] == [list(losses) for losses in rating.losses]


def test_training_goes_on_with_the_shares_of_the_workers_that_began_it(data, images, rating, tmp_path):
    """Which are one each, though there is a single process now."""
    config, ends = DnaConfig(epochs=2, batch_size=16), []
    shares = {"settings": rating._settings(), "shares": [[0], [1]], "version": VERSION}
    (tmp_path / "training.json").write_text(json.dumps(shares))
    apart = block_rating(data, images, teacher(), config, directory=tmp_path, on_step=ends.append)
    apart.prepare()
    assert apart.losses == rating.losses
    assert [len(end.losses) for end in ends if end.losses] == [1, 1]
    assert {path.name for path in tmp_path.glob("blocks_*")} == {"blocks_0", "blocks_1"}


def test_blocks_that_a_former_version_trained_half_are_refused(data, images, tmp_path):
    save_checkpoint(tmp_path / "checkpoints", 4, {"settings": "{}", "blocks": {}}, keep=1)
    former = block_rating(data, images, teacher(), DnaConfig(epochs=2, batch_size=16), directory=tmp_path)
    with pytest.raises(ValueError, match=r"by a former version, .*: name another output, or remove that folder"):
        former.prepare()
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "training.json").write_text(json.dumps({"settings": former._settings(), "shares": [[0, 1]]}))
    with pytest.raises(ValueError, match=r"by a former version, .*: name another output, or remove that folder"):
        former.prepare()


def test_ratings_of_a_former_version_are_read(data, images, rating, tmp_path):
    content = json.loads((rating._directory / "ratings.json").read_text())
    for name in ("clip", "clip_mode", "ema_decay"):
        del content["settings"]["config"][name]
    content["settings"]["streams"] = 2
    (tmp_path / "ratings.json").write_text(json.dumps(content))
    config = DnaConfig(epochs=2, batch_size=16, amp="bf16")  # which rated blocks no longer follow from
    read = block_rating(data, images, teacher(), config, directory=tmp_path)
    read.prepare()
    assert read.losses == rating.losses
    assert not (tmp_path / "training.json").exists()
    clipped = block_rating(data, images, teacher(), dataclasses.replace(config, clip=1.0), directory=tmp_path)
    with pytest.raises(ValueError, match=r"trained otherwise .*'clip': None"):
        clipped.prepare()


def brute_force(rating, problem):
    """The rated architectures within the limits, the best first."""
    archs = [arch for arch in SPACE if arch["head"] == 12]
    good = [arch for arch in archs if (problem.violation(problem.price([arch])) <= 1).all()]
    return sorted(good, key=lambda arch: -rating([arch])[0])


def odd(archs):
    """A cost that is no sum over blocks: the parts multiply."""
    return [1.0 + a["width.0"] * a["depth.0"] * a["kernel_size.2"] * a["width.3"] for a in archs]


@pytest.mark.parametrize("quantile", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("name", ["macs", "product", "odd"])
def test_the_best_architecture_is_that_of_brute_force(rating, name, quantile):
    cost = {
        "macs": lambda archs: [FAMILY.macs(arch) for arch in archs],
        "product": lambda archs: [np.exp(a["depth.0"] + 0.3 * a["width.0"] + 0.2 * a["kernel_size.2"]) for a in archs],
        "odd": odd,
    }[name]
    limit = float(np.quantile(cost(list(SPACE)), quantile))
    problem = Problem(SPACE, ["dna"], {name: cost}, {name: limit})
    found = [arch for arch in rating.best_first(problem) if arch["head"] == 12]
    expected = brute_force(rating, problem)
    assert set(found) == set(expected)
    np.testing.assert_allclose(rating(found), rating(expected), rtol=1e-12)


def test_two_limits_at_once(rating):
    costs = {"macs": lambda archs: [FAMILY.macs(a) for a in archs], "odd": odd}
    limits = {name: float(np.median(cost(list(SPACE)))) for name, cost in costs.items()}
    problem = Problem(SPACE, ["dna"], costs, limits)
    found = list(itertools.islice(rating.best_first(problem), 5))
    np.testing.assert_allclose(rating(found), rating(brute_force(rating, problem)[:5]), rtol=1e-12)


def test_what_no_block_depends_on_is_large_first_and_small_where_it_must_be(rating):
    def size(archs):
        return [float(arch["head"] + arch["width.3"]) for arch in archs]

    found = list(rating.best_first(Problem(SPACE, ["dna"], {"size": size}, {"size": 16.0})))
    assert [arch["head"] for arch in found] == [12] * 18 + [8] * 36
    assert {arch["width.3"] for arch in found[:18]} == {4}
    found = list(rating.best_first(Problem(SPACE, ["dna"], {"size": size}, {"size": 12.0})))
    assert {(arch["head"], arch["width.3"]) for arch in found} == {(8, 4)}


def test_a_cost_that_is_no_sum_is_told(rating, caplog):
    next(rating.best_first(Problem(SPACE, ["dna"], {"odd": odd}, {"odd": 100.0})))
    assert "odd is no sum over blocks" in caplog.text


def test_a_limit_that_no_rated_architecture_meets_is_named(rating):
    problem = Problem(SPACE, ["dna"], {"odd": odd}, {"odd": 10.0})
    with pytest.raises(ValueError, match="no architecture that is rated meets odd <= 10; the smallest has odd = 17"):
        next(assemble(SPACE, rating.blocks, rating.losses, problem))


@pytest.mark.exhaustive  # workers that die go on to the same weights, too
def test_ray_workers_train_the_same_blocks_which_are_rated_where_they_are(
    data, images, rating, tmp_path, elsewhere, monkeypatch
):
    config = DnaConfig(epochs=2, batch_size=16, workers=2)
    shared = block_rating(data, images, teacher(), config, directory=tmp_path).to(elsewhere)
    places = []

    def rated(block, batches, target, *rest):
        places.append(target.device.type)
        return rate_paths(block, batches, target, *rest)

    monkeypatch.setattr("search.blockwise.dna.rate_paths", rated)
    shared.prepare()
    assert places == [elsewhere, elsewhere]
    assert shared.losses == rating.losses
    assert {path.name for path in tmp_path.glob("blocks_*")} == {"blocks_0", "blocks_1"}
