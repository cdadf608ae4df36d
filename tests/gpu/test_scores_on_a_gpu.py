"""What judges networks on a GPU gives there what it gives on a CPU, to rounding, and a search finds the same.

    GPU_TESTS=1 python -m pytest tests/gpu

Without a GPU some of them run on the CPU, which shows that they can, and no more.
"""

import copy
import dataclasses

import pytest
import torch

from distill.blockwise import Teacher
from search.blockwise.dna import DnaConfig
from search.run import run_search
from search.scores.judges import make_judge, training_batch, untrained_run
from search.scores.teacher_guided import FromSupernet, GuidanceConfig, TeacherGuided
from search.scores.untrained import NAMES, TrainingFreeScore
from search.settings import SearchJob
from search.untrained.proxies import nasbench201_proxies
from search.untrained.te_nas import TeNasConfig
from supernet.artifacts.subnet import take_out
from supernet.evaluation import evaluate
from supernet.training.data import DataConfig
from supernet.training.execution import tf32

IS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if IS_GPU else "cpu"
SETTINGS = TeNasConfig(repeats=1, ntk_images=16, region_images=200)
CELLS = '{"channels": 4, "cells": 1}'
FEW = {"images": 200, "calibration_images": 200, "population": 4, "evaluations": 4}
SCORED = NAMES if IS_GPU else ("snip", "ntk")


@pytest.fixture(autouse=True)
def exact():
    with tf32(False):
        yield


@pytest.fixture(scope="module")
def micro():
    return untrained_run("mobilenet_v3_micro", "{}", DataConfig())


@pytest.fixture(scope="module")
def cells():
    """NAS-Bench-201 with two undecided edges of two operations."""
    run = untrained_run("nasbench201", CELLS, DataConfig())
    names = list(run.family.space.choices)
    kept = dict.fromkeys(names[:2], ("skip_connect", "nor_conv_1x1")) | dict.fromkeys(names[2:], ("nor_conv_3x3",))
    return run._replace(family=dataclasses.replace(run.family, space=run.family.space.restrict(kept)))


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("batch_norm", ["batch", "frozen"])
def test_scores_of_untrained_networks(name, batch_norm, cells):
    if batch_norm == "frozen" and name != "ntk":
        pytest.skip("the kernel alone depends on it")
    archs = [cells.family.space.smallest, cells.family.space.largest]
    settings = dataclasses.replace(SETTINGS, batch_norm=batch_norm)
    batch = training_batch(cells.data, 32, 16, 0)
    score = TrainingFreeScore(cells.family, [name], batch, 5, nasbench201_proxies(), settings)
    expected, found = score.to("cpu")(archs), score.to(DEVICE)(archs)
    assert found == pytest.approx(expected, rel=0.02)


def test_the_likeness_to_a_teacher(micro):
    family, net = micro.family, micro.net.eval()
    job = SearchJob(**FEW)
    found = []
    for device in ("cpu", DEVICE):
        teacher = Teacher(net.extract(family.space.largest).cpu())
        batches = make_judge(job, micro).score.batches
        score = TeacherGuided(
            FromSupernet(net),
            batches,
            family.resolution,
            teacher,
            family.resolution(family.space.largest),
            GuidanceConfig(images=32),
        ).to(device)
        found.append(score([family.space.smallest]))
    net.cpu()
    assert found[1] == pytest.approx(found[0], abs=0.02)


@pytest.mark.parametrize("score", ["accuracy", *(["zero_cost", "dna"] if IS_GPU else [])])
def test_a_search_finds_the_same(score, micro, tmp_path, monkeypatch):
    teacher = micro.family.supernet(1).eval().extract(micro.family.space.largest)
    monkeypatch.setattr("search.scores.judges.load_teacher", lambda *arguments, **options: copy.deepcopy(teacher))
    blocks = DnaConfig(epochs=1, batch_size=256, points=("blocks.0",), cuts=("blocks.0",))
    job = SearchJob("random", score=score, zero_cost_images=16, teacher="own", dna=blocks, **FEW)
    expected, found = (
        run_search(job, micro, {}, tmp_path / f"{place}{device}" / "search.jsonl", device=device).result.evaluations
        for place, device in enumerate(("cpu", DEVICE))
    )
    assert [evaluation.arch for evaluation in found] == [evaluation.arch for evaluation in expected]
    for own, wanted in zip(found, expected):
        assert own.error == wanted.error
        assert own.scores == pytest.approx(wanted.scores, abs=0.1)
    assert any(evaluation.scores for evaluation in found)
    assert next(micro.net.parameters()).device.type == "cpu"


def test_a_subnet_is_taken_out_and_tested(micro):
    arch, task = micro.family.space.smallest, micro.family.task
    batches = list(micro.data.evaluation_batches(micro.data.test, micro.family.resolution(arch)))
    found = []
    for device in ("cpu", DEVICE):
        micro.net.to(device)
        subnet = take_out(micro, arch, 200)
        assert next(subnet.model.parameters()).device.type == "cpu"
        found.append(evaluate(subnet.model.to(device), task, batches, arch)["accuracy"])
    micro.net.cpu()
    assert found[1] == pytest.approx(found[0], abs=0.02)
