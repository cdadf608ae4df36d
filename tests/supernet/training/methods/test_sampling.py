import collections
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from supernet.artifacts.runs import Job, run_job
from supernet.families import FAMILIES, Family
from supernet.space import Choice, SearchSpace
from supernet.tasks import Classification
from supernet.training import distributed
from supernet.training.data import DataConfig, load_data
from supernet.training.execution import Execution
from supernet.training.methods.sampling import Attentive, Fair, Sandwich, Step, Uniform
from supernet.training.step import TrainConfig
from supernet.training.train import train

SPACE = SearchSpace(
    {
        "operation": ("identity", "conv3", "conv5"),
        "width": (8, 16, 24, 32, 40, 48),
        "dilation": Choice((1, 2), when={"operation": ("conv3", "conv5")}),
    }
)


def never(arch, images):
    raise AssertionError("no subnet needs to be judged")


def step(generator, logits=never):
    """A step of the training of no network, whose subnets have the given logits."""
    batch = torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)
    return Step(0, 0, 0.0, generator, None, batch, Classification(), logits, 0.1)


def test_a_sandwich_is_the_largest_on_labels_and_the_others_on_its_logits(numpy_generator):
    space = FAMILIES["mobilenet_v3_micro"]().space
    learners = Sandwich(space, random_subnets=3).learners(step(numpy_generator))
    assert [learner.teacher for learner in learners] == [None, 0, 0, 0, 0]
    assert [learner.label_weight for learner in learners] == [1, 0, 0, 0, 0]
    assert [learner.regularised for learner in learners] == [True, False, False, False, False]
    assert (learners[0].arch, learners[-1].arch) == (space.largest, space.smallest)
    assert len({learner.arch for learner in learners}) == 5


def test_the_others_of_a_sandwich_may_learn_from_labels_too(numpy_generator):
    learners = Sandwich(SPACE, 1, label_weight=0.5).learners(step(numpy_generator))
    assert [(x.label_weight, x.teacher_weight * (x.teacher == 0)) for x in learners] == [(1, 0), (0.5, 1), (0.5, 1)]
    with pytest.raises(
        ValueError, match="label_weight is 0 or more, and 0 unless the method is sandwich, not 1 for spos"
    ):
        TrainConfig(method="spos", label_weight=1)


def test_uniform_learners_learn_from_labels_alone(numpy_generator):
    learners = Uniform(SPACE, subnets=4).learners(step(numpy_generator))
    assert [(learner.teacher, learner.regularised) for learner in learners] == [(None, False)] * 4


def test_uniform_learners_may_learn_from_a_teacher_and_have_dropout(numpy_generator):
    learners = Uniform(SPACE, subnets=2, teacher_weight=0.25, regularised=True).learners(step(numpy_generator))
    assert [(x.teacher, x.label_weight, x.teacher_weight, x.regularised) for x in learners] == [
        ("external", 1.0, 0.25, True)
    ] * 2


def test_subnets_are_judged_by_the_images_of_all_processes(numpy_generator, monkeypatch):
    monkeypatch.setattr(distributed, "average", lambda values: values + torch.tensor([0.0, 0.5]))  # of the others
    here = step(numpy_generator, lambda arch, images: torch.zeros(2, 4))
    loss = F.cross_entropy(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64)).item()
    assert here.losses([SPACE.largest, SPACE.smallest]) == pytest.approx([loss, loss + 0.5])


def test_fair_learners_train_every_value_equally_often(numpy_generator):
    method = Fair(SPACE)
    for _ in range(20):
        learners = method.learners(step(numpy_generator))
        assert [(learner.teacher, learner.regularised) for learner in learners] == [(None, False)] * 6
        assert collections.Counter(learner.arch["operation"] for learner in learners) == dict.fromkeys(
            ("identity", "conv3", "conv5"), 2
        )
        assert sorted(learner.arch["width"] for learner in learners) == [8, 16, 24, 32, 40, 48]
        assert all(("dilation" in learner.arch) == (learner.arch["operation"] != "identity") for learner in learners)


def test_fair_learners_pair_values_of_different_choices_at_random(numpy_generator):
    pairs = collections.Counter()
    for _ in range(600):
        for learner in Fair(SPACE).learners(step(numpy_generator)):
            pairs[learner.arch["operation"], learner.arch["width"]] += 1
    assert len(pairs) == 18
    assert all(140 < count < 260 for count in pairs.values())  # 200 expected, of standard deviation 12


@pytest.mark.parametrize(("pick", "best"), [("best", min), ("worst", max)])
def test_attentive_sampling_trains_the_extreme_of_similar_subnets(numpy_generator, pick, best):
    family = FAMILIES["mobilenet_v3_micro"]()
    judged = []

    def logits(arch, images):  # the more parameters, the higher the loss on class 0
        judged.append(arch)
        return torch.tensor([0.0, family.parameters(arch) / 1e5]).expand(2, 2)

    method = Attentive(family.space, family.macs, pick, random_subnets=2, trials=3, macs_step=0.25e6)
    learners = method.learners(step(numpy_generator, logits))
    assert [learner.teacher for learner in learners] == [None, 0, 0, 0]
    assert (learners[0].arch, learners[-1].arch) == (family.space.largest, family.space.smallest)
    trials = [judged[:3], judged[3:]]
    assert [learner.arch for learner in learners[1:-1]] == [best(archs, key=family.parameters) for archs in trials]
    for archs in trials:
        assert len(set(archs)) == 3
        assert len({round(family.macs(arch) / 0.25e6) for arch in archs}) == 1


def test_attentive_sampling_makes_do_with_fewer_candidates(numpy_generator):
    method = Attentive(SPACE, lambda arch: 10**9 * arch["width"], "best", trials=40)
    widths = {arch["width"] for arch in method.candidates(numpy_generator)}
    assert len(widths) == 1


class Watching(Uniform):
    """Uniform learners that learn from a teacher, and all that a method gets to see."""

    def __init__(self, space):
        super().__init__(space, subnets=2, teacher_weight=1.0)
        self.__dict__.update(epochs=[], steps=[], chosen=[], finished=[])

    def start_epoch(self, net, companions, progress):
        self.epochs.append((len(self.steps), progress))

    def learners(self, step):
        self.steps.append((step.number, step.epoch, step.progress, step.lr, step.batch[0].clone(), step.batch[1]))
        self.chosen.append(super().learners(step))
        return self.chosen[-1]

    def finish(self, step, learners, logits):
        self.finished.append((step.number, learners, [tuple(part.shape) for part in logits]))


def test_a_method_sees_every_step_and_the_beginning_of_every_epoch(tmp_path):
    def build(arch):
        return nn.Sequential(
            nn.Conv2d(3, arch["width"], 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(arch["width"], 10)
        )

    space = SearchSpace({"width": tuple(range(2, 34)), "resolution": (8, 12)})
    family = Family(space, build, num_classes=10, input_size=12)
    data = load_data(DataConfig(holdout=0.97))
    config = TrainConfig(epochs=3, batch_size=8)
    execution = Execution(eval_epochs=0)
    each = data.steps_per_epoch(8)
    seen = []
    teacher = nn.Sequential(build(space.largest), nn.Dropout(0.5)).train()
    teacher.register_forward_hook(lambda module, args, output: seen.append((args[0], module[1].training)))
    method, again = Watching(space), Watching(space)
    train(family, family.supernet(), data, config, tmp_path / "first", execution, method=method, teacher=teacher)
    assert method.epochs == [(epoch * each, pytest.approx(epoch / 3)) for epoch in range(3)]
    assert [step[:2] for step in method.steps] == [(number, number // each) for number in range(3 * each)]
    assert [step[2] for step in method.steps] == pytest.approx([number / (3 * each) for number in range(3 * each)])
    assert len({step[3] for step in method.steps}) == 3 * each  # a rate of its own
    assert [(number, learners) for number, learners, _ in method.finished] == list(enumerate(method.chosen))
    assert {tuple(shapes) for *_, shapes in method.finished} == {((8, 10), (8, 10))}
    # every step draws anew, and the same when all is done again
    assert len({tuple(learner.arch for learner in learners) for learners in method.chosen}) == 3 * each
    train(family, family.supernet(), data, config, tmp_path / "second", execution, method=again, teacher=teacher)
    assert again.chosen == method.chosen
    # the teacher takes the images of each step as they are, without dropout
    assert len(seen) == 6 * each
    assert all(torch.equal(images, step[4]) for (images, _), step in zip(seen, method.steps))
    assert all(step[4].shape == (8, 3, 12, 12) for step in method.steps)
    assert not any(training for _, training in seen)


@pytest.mark.parametrize(
    ("method", "losses"), [("sandwich", 4), ("best_up", 4), ("worst_up", 4), ("spos", 2), ("fairnas", 3)]
)
def test_every_method_trains(tmp_path, method, losses):
    train = TrainConfig(epochs=1, batch_size=16, method=method, macs_step=1.0)
    job = Job(data=DataConfig(holdout=0.97), train=train, execution=Execution(workers=0, eval_epochs=0, log_steps=1))
    results = []
    run_job(job, tmp_path, on_step=results.append)
    assert [len(result.losses) for result in results] == [losses] * 2


def test_numbers_below_one_are_refused():
    for name in ("random_subnets", "trials"):
        with pytest.raises(ValueError, match=f"{name} is at least 1, not 0"):
            dataclasses.replace(TrainConfig(), **{name: 0})
