"""P+TG for subnets of a supernet and for candidates that train by themselves."""

import dataclasses

import pytest
import torch

from distill.blockwise import Teacher
from distill.rdm import dissimilarity, rdm_similarity
from search.scores.accuracy import SupernetAccuracy, labelled, resized
from search.scores.teacher_guided import (
    FromSupernet,
    GuidanceConfig,
    TeacherGuided,
    TrainedBriefly,
    brief_training,
    guidance_of,
)
from supernet.families import FAMILIES
from supernet.training.data import DataConfig, load_data
from supernet.training.execution import Execution


@pytest.fixture(scope="module")
def family():
    family = FAMILIES["nasbench_macro"]()
    return dataclasses.replace(family, input_size=16)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    calibration, judges = (torch.randn(12, 3, 16, 16, generator=generator) for _ in range(2))
    return resized(calibration, judges, torch.arange(12) % 10)


@pytest.fixture(scope="module")
def net(family):
    return family.supernet().eval()


def test_a_network_is_its_own_best_teacher(family, net, images):
    arch = family.space.smallest
    model = net.extract(arch).eval()
    seen = images(16).images
    points = ("blocks.1", "blocks.4")
    matrices = [dissimilarity(features) for features in Teacher(model, points)(seen)]
    assert guidance_of(model, (seen,), matrices) == pytest.approx(1)
    other = net.extract(family.space.largest).eval()
    own = [dissimilarity(features) for features in Teacher(other, [f"blocks.{i}" for i in range(8)])(seen)]
    best = [max(rdm_similarity(matrix, mine) for mine in own) for matrix in matrices]
    assert sum(best) / 2 - 1e-6 <= guidance_of(other, (seen,), matrices) < 0.999


def test_the_score_is_accuracy_plus_guidance(family, net, images):
    teacher = Teacher(net.extract(family.space.largest), ("blocks.1", "blocks.7"))
    archs = [family.space.smallest, family.space.largest]
    scores = {
        weight: TeacherGuided(
            FromSupernet(net), labelled(images), family.resolution, teacher, 16, GuidanceConfig(weight=weight, images=6)
        )
        for weight in (0.0, 0.5)
    }
    performance = SupernetAccuracy(net, images, family.resolution)(archs)
    assert scores[0.0](archs) == pytest.approx(performance)
    guided = scores[0.5](archs)
    assert guided == [value for _, value in scores[0.5].each(archs)]
    assert all(abs(a - b) <= 0.5 for a, b in zip(guided, performance))
    assert guided != pytest.approx(performance)


def test_candidates_that_train_by_themselves(family, images, tmp_path):
    data = load_data(DataConfig())
    data = dataclasses.replace(data, train=torch.utils.data.Subset(data.train, range(32)))
    training = brief_training(GuidanceConfig(epochs=1, batch_size=16), seed=3)
    execution = Execution("cpu", eval_epochs=0)
    candidate = TrainedBriefly(family, data, training, tmp_path, execution)
    arch = family.space.smallest
    batches = images(24).calibration.split(8)
    model = candidate(arch, batches)
    untrained = family.supernet(3).extract(arch)
    assert model.state_dict().keys() == untrained.state_dict().keys()
    assert not torch.equal(model.classifier.weight, untrained.classifier.weight)
    again = TrainedBriefly(family, data, training, tmp_path, execution)(arch, batches)  # from its checkpoint
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    assert len(list(tmp_path.iterdir())) == 1


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="images are 3 or more"):
        GuidanceConfig(images=2)
