"""Judging: each architecture once, kept as it comes; and the yardsticks."""

import dataclasses
import gzip
import json

import pytest

from search.comparison import Yardstick, by_supernet, by_table, judged, trained_alone
from search.evaluator import evaluate_here
from search.history import read_history
from search.run import run_search
from search.scores.judges import settled, untrained_run
from search.settings import SearchJob
from search.sweep import Trial
from supernet import SearchSpace
from supernet.evaluation import accuracy
from supernet.families.nas_bench_201 import to_string
from supernet.training.data import DataConfig
from supernet.training.execution import Execution, channels_last
from supernet.training.standalone import ModelJob, model_settings, run_model_job

SPACE = SearchSpace({"a": tuple(range(9))})
ARCHS = list(SPACE)
DATA = DataConfig(holdout=0.97, hflip=0.0, color_jitter=0.0)  # 43 images to train on


class Counted:
    """Nine times the choice, one architecture at a time, until `count` were judged."""

    def __init__(self, count=99):
        self.count, self.asked = count, []

    def each(self, archs):
        for index, arch in enumerate(archs):
            if len(self.asked) == self.count:
                raise KeyboardInterrupt
            self.asked.append(arch)
            yield index, ZeroDivisionError("no") if arch["a"] == 8 else 9.0 * arch["a"]


def test_each_is_judged_once_and_nothing_judged_is_lost(tmp_path):
    score = Counted(3)
    settings = {"yardstick": "nines", "calibration_bytes": 1}
    yardstick = Yardstick("nines", score, settings, {ARCHS[0]: 1.0})
    costs = {"ms": lambda archs: [1.0 + arch["a"] for arch in archs]}

    def judge(archs, yardstick=yardstick):
        evaluate = evaluate_here({"nines": yardstick.score})
        return judged(archs, yardstick, SPACE, costs, evaluate, tmp_path / "judged.jsonl")

    with pytest.raises(KeyboardInterrupt):
        judge(ARCHS[:5] + ARCHS[:5])
    assert score.asked == ARCHS[1:4]
    score.count = 99
    values, failed = judge([*ARCHS[:5], ARCHS[8]])
    assert score.asked == [*ARCHS[1:5], ARCHS[8]]
    assert values == {arch: 9.0 * arch["a"] for arch in ARCHS[1:5]} | {ARCHS[0]: 1.0}
    assert [(e.arch, e.error) for e in failed] == [(ARCHS[8], "nines: ZeroDivisionError: no")]
    assert [e.costs for e in read_history(tmp_path / "judged.jsonl")[1]][:2] == [{"ms": 2.0}, {"ms": 3.0}]
    assert judge([ARCHS[4], ARCHS[8]])[1] == failed  # which was tried again
    assert score.asked == [*ARCHS[1:5], ARCHS[8], ARCHS[8]]
    assert judge(ARCHS[:1]) == ({ARCHS[0]: 1.0}, [])
    asked = len(score.asked)
    assert judge(ARCHS[:5], yardstick._replace(settings=settings | {"calibration_bytes": 2})) == (values, [])
    assert len(score.asked) == asked
    with pytest.raises(ValueError, match="its yardstick is 'nines', not 'tens'"):
        judge(ARCHS, yardstick._replace(settings={"yardstick": "tens"}))


@pytest.fixture(scope="module")
def cells():
    run = untrained_run("nasbench201", '{"channels": 2, "cells": 1}', DATA)
    settings = dataclasses.replace(run.job.train, batch_size=16, warmup_epochs=1.0, epochs=9)
    return run._replace(job=dataclasses.replace(run.job, train=settings))


def test_the_supernets_yardstick_is_what_a_search_by_accuracy_goes_by(cells, tmp_path):
    job = SearchJob(evaluations=2, population=2, images=30, calibration_images=20)
    run_search(job, cells, {}, tmp_path / "search.jsonl")
    settings, evaluations = read_history(tmp_path / "search.jsonl")
    yardstick = by_supernet(job, cells)
    archs = [evaluation.arch for evaluation in evaluations]
    values = yardstick.score(archs)
    assert [e.scores for e in evaluations] == [{yardstick.name: value} for value in values]

    trial = Trial({}, {}, evaluations, None, settings)
    again = by_supernet(dataclasses.replace(job, calibration_bytes=10**6, batch_size=9), cells)
    for same in (yardstick, again):
        assert same.knowing([trial]).known == dict(zip(archs, values))
    for other in ({"images": 20}, {"calibration_images": 10}, {"resize_images": True}):
        assert by_supernet(dataclasses.replace(job, **other), cells).knowing([trial]).known == {}


def test_the_supernets_yardstick_has_images_as_searches_have_them(cells):
    job = SearchJob()
    assert by_supernet(job, cells).settings["images"] is settled(job, cells).images is None  # few are held out
    few = dataclasses.replace(job, images=30)
    assert by_supernet(few, cells).settings["images"] == settled(few, cells).images == 30


def test_what_is_trained_alone_is_an_ordinary_training(cells, tmp_path):
    yardstick = trained_alone(cells, 1, tmp_path / "alone", Execution(workers=0, eval_epochs=0))
    arch = cells.family.space.largest
    (value,) = yardstick.score([arch])
    train = dataclasses.replace(model_settings(cells.job.train), epochs=1, warmup_epochs=0.25)
    job = ModelJob(
        "nasbench201", cells.job.space_options, arch.to_json(), data=DATA, train=train, execution=Execution(workers=0)
    )
    model = run_model_job(job, tmp_path / "model").model
    batches = cells.data.evaluation_batches(cells.data.holdout, cells.family.resolution(arch))
    assert value == accuracy(channels_last(model), batches)
    assert yardstick.name == "accuracy_alone"
    assert json.loads(json.dumps(yardstick.settings))["train"]["epochs"] == 1
    (folder,) = (tmp_path / "alone").glob("*/*")
    before = (folder / "metrics.jsonl").read_text()
    assert list(yardstick.score.each([arch])) == [(0, value)]  # from the training's folder
    assert (folder / "metrics.jsonl").read_text() == before
    trained_alone(cells, 2, tmp_path / "alone", Execution(workers=0, eval_epochs=0)).score([arch])
    (other,) = set((tmp_path / "alone").glob("*/*")) - {folder}  # where no training of other settings goes on
    assert (other.name, (folder / "metrics.jsonl").read_text()) == (folder.name, before)
    with pytest.raises(ValueError, match="takes at least 1 epoch, not 0"):
        trained_alone(cells, 0, tmp_path, Execution())


def test_a_table_gives_what_was_published(cells, tmp_path):
    space = cells.family.space
    first, second = space.smallest, space.largest
    with gzip.open(tmp_path / "table.csv.gz", "wt") as file:
        file.write(f"arch,accuracy_1,accuracy_2\n{to_string(first)},80,82\n")
        file.write('"{}",10,20\n'.format(second.to_json().replace('"', '""')))
    yardstick = by_table(tmp_path / "table.csv.gz", cells)
    assert yardstick.known == {first: 81.0, second: 15.0}
    third = next(arch for arch in space if arch not in yardstick.known)
    evaluate = evaluate_here({yardstick.name: yardstick.score})
    values, (missing,) = judged([first, third], yardstick, space, {}, evaluate, tmp_path / "judged.jsonl")
    assert values == yardstick.known
    assert missing.error == "published: ValueError: table.csv.gz has no such architecture"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no table"),
        ("arch,loss\n{},1\n", "needs the columns arch and accuracy, and has arch, loss"),
        ("arch,accuracy\n", "has no architecture"),
        ("arch,accuracy\nnonsense,1\n", "line 2: a cell is written"),
        ('arch,accuracy\n"{""a"": 1}",1\n', "line 2: "),
        ("arch,accuracy\nSMALLEST,nan\n", "line 2: the accuracy is nan"),
        ("accuracy,arch\n1\n", "line 2: the row is too short: it has no arch"),
    ],
)
def test_a_table_that_is_none_is_refused(cells, tmp_path, text, message):
    path = tmp_path / "table.csv"
    if text is not None:
        path.write_text(text.replace("SMALLEST", to_string(cells.family.space.smallest)))
    with pytest.raises(ValueError, match=message):
        by_table(path, cells)
