"""Every score on a device that is not the CPU is that of the CPU, and comes back."""

import dataclasses
import threading

import numpy as np
import pytest
import torch

import tests.elsewhere
from distill.blockwise import Teacher
from search.problem import placed
from search.scores.accuracy import SupernetAccuracy, labelled, resized
from search.scores.teacher_guided import FromSupernet, GuidanceConfig, TeacherGuided, TrainedBriefly, brief_training
from search.scores.untrained import NAMES, LabelledImages, TrainingFreeScore
from search.untrained.proxies import nasbench201_proxies
from search.untrained.te_nas import TeNasConfig
from supernet.families import FAMILIES

SETTINGS = TeNasConfig(repeats=1, ntk_images=4, region_images=40)


def images(size):
    generator = torch.Generator().manual_seed(0)
    calibration, judges = (torch.randn(24, 3, size, size, generator=generator) for _ in range(2))
    return resized(calibration, judges, torch.randint(10, (24,), generator=generator))


def there_and_back(score, archs, elsewhere):
    """The values on the CPU, elsewhere, and on the CPU again."""
    found = []
    for device in ("cpu", elsewhere, "cpu"):
        assert placed(score, device) is score
        found.append(score(archs))
    return found


def test_the_accuracy_in_the_supernet(elsewhere):
    family = FAMILIES["mobilenet_v3_micro"]()
    archs = [family.space.sample(np.random.default_rng(seed)) for seed in range(2)]
    score = SupernetAccuracy(family.supernet(), images(32), family.resolution, 12)
    here, there, again = there_and_back(score, archs, elsewhere)
    assert here == there == again
    score.to(elsewhere)
    assert all(tensor.device.type == elsewhere for tensor in score.net.state_dict().values())


def test_a_gpu_gets_its_work_from_one_thread(elsewhere, monkeypatch):
    """Or cuDNN sets up its convolutions again for every new one."""
    threads, run = set(), tests.elsewhere._run

    def noted(*arguments):
        threads.add(threading.current_thread())
        return run(*arguments)

    monkeypatch.setattr("tests.elsewhere._run", noted)
    family = FAMILIES["mobilenet_v3_micro"]()
    score = SupernetAccuracy(family.supernet(), images(32), family.resolution, 6).to(elsewhere)
    score([family.space.smallest])
    score.net.statistics_of = family.space.largest  # by which others are corrected
    score([family.space.smallest])
    assert threads == {threading.main_thread()}


def test_the_likeness_to_a_teacher(elsewhere):
    family = dataclasses.replace(FAMILIES["nasbench_macro"](), input_size=16)
    net, config = family.supernet().eval(), GuidanceConfig(images=6)
    found = []
    for device in ("cpu", elsewhere):
        teacher = Teacher(net.extract(family.space.largest).cpu(), ("blocks.1", "blocks.7"))
        score = TeacherGuided(FromSupernet(net), labelled(images(16)), family.resolution, teacher, 16, config)
        score.to(device).prepare()  # the teacher looks there, too
        assert next(teacher.model.parameters()).device.type == device
        found += there_and_back(score, [family.space.smallest], elsewhere)
    assert all(value == found[0] for value in found)


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_untrained_networks(name, elsewhere):
    family = FAMILIES["nasbench201"](channels=4, cells=1)
    archs = [family.space.sample(np.random.default_rng(1))]
    batch = LabelledImages(images(32)(32).images[:8], images(32)(32).labels[:8], size=4)
    score = TrainingFreeScore(family, [name], batch, 5, nasbench201_proxies(), SETTINGS)
    here, there, again = there_and_back(score, archs, elsewhere)
    assert here == again
    assert there == pytest.approx(here, rel=1e-9)


def test_candidates_that_train_by_themselves_train_there(monkeypatch, tmp_path):
    family = FAMILIES["nasbench_macro"]()
    seen = []

    def train(*arguments, **_):
        seen.append(arguments[5].device)
        return family.supernet()

    monkeypatch.setattr("search.scores.teacher_guided.train", train)
    monkeypatch.setattr("search.scores.teacher_guided.calibrated", lambda net, arch, *_: net.extract(arch))
    data = type("", (), {"classes": tuple("0123456789")})
    candidate = TrainedBriefly(family, data, brief_training(GuidanceConfig(epochs=1), 0), tmp_path)
    assert candidate.to(torch.device("cuda", 1)) is candidate
    candidate(family.space.smallest, [])
    assert seen == ["cuda:1"]


def test_what_has_no_place_stays_as_it_is():
    assert placed(len, "cpu") is len
