"""Architectures that are trained by themselves, on labels and by a teacher."""

import dataclasses

import pytest
import torch
from torch import nn

from distill.objective import Objective
from search.run import run_search
from search.scores.judges import make_judge, untrained_run
from search.scores.trained_alone import AkdConfig, TrainedAlone, alone_settings
from search.settings import SearchJob
from supernet.training.data import DataConfig
from supernet.training.execution import Execution
from supernet.training.step import TrainConfig

EXECUTION = Execution("cpu", eval_epochs=0, keep_checkpoints=1)


@pytest.fixture(scope="module")
def run():
    """NAS-Bench-201 with two undecided edges of two operations, to be trained for one epoch."""
    run = untrained_run("nasbench201", '{"channels": 4, "cells": 1}', DataConfig(holdout=0.8))
    names = list(run.family.space.choices)
    kept = dict.fromkeys(names[:2], ("skip_connect", "nor_conv_1x1")) | dict.fromkeys(names[2:], ("nor_conv_3x3",))
    family = dataclasses.replace(run.family, space=run.family.space.restrict(kept), input_size=8)
    train = TrainConfig(epochs=1, batch_size=32, lr=1.0, warmup_epochs=0)
    return run._replace(family=family, job=dataclasses.replace(run.job, train=train))


class Says(nn.Module):
    """A teacher that is sure of one class, whatever it sees."""

    def __init__(self, label):
        super().__init__()
        self.logits = nn.Parameter(20 * nn.functional.one_hot(torch.tensor(label), 10).float())

    def forward(self, images):
        return self.logits.expand(len(images), -1)


def score(run, folder, objective, teacher):
    return TrainedAlone(run.family, run.data, alone_settings(run.job.train, 2), folder, EXECUTION, objective, teacher)


def test_a_student_learns_what_its_teacher_says(run, tmp_path):
    """By a teacher alone that knows one class, a student's accuracy becomes that class's part of the images."""
    arch, labels = run.family.space.largest, torch.tensor([label for _, label in run.data.holdout])
    by_teacher = Objective(labels=0.0, kl=1.0, temperature=1.0)
    for label in (3, 7):
        (value,) = score(run, tmp_path / str(label), by_teacher, Says(label))([arch])
        assert value == pytest.approx((labels == label).float().mean().item())


def test_a_search_trains_each_student_once_in_a_folder_of_its_own(run, tmp_path, monkeypatch):
    monkeypatch.setattr("search.scores.judges._teacher", lambda job, run: Says(3))
    job = SearchJob("random", score="akd", teacher="models/teacher", akd=AkdConfig(1), population=2, evaluations=3)
    result = run_search(job, run, {}, tmp_path / "search.jsonl").result
    folders = sorted(path.name for path in (tmp_path / "akd").iterdir())
    assert folders == sorted(
        "-".join(map(str, run.family.space.encode([found.arch])[0])) for found in result.evaluations
    )
    judge = make_judge(job, run, tmp_path)
    found = result.evaluations[0]
    assert judge.score([found.arch]) == [found.scores["akd"]]
    with pytest.raises(ValueError, match="need a folder to train in"):
        make_judge(job, run)


def test_what_is_no_distillation_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="a weight kl above 0, not 5 and 0"):
        AkdConfig(kl=0)
    with pytest.raises(ValueError, match="the score akd needs a teacher"):
        make_judge(SearchJob(score="akd"), run, tmp_path)
