"""Ensembles of scores: what they learn from trained networks, what they keep, and what they refuse."""

import dataclasses
import json
import pickle

import numpy as np
import pytest

from predictors.accuracy import rank_correlation
from predictors.posterior import MINIMUM
from search.history import read_history
from search.run import run_search
from search.scores.accuracy import SupernetAccuracy
from search.scores.ensemble import TRAINED, Ensemble, EnsembleConfig, EnsembleScore
from search.scores.judges import make_judge, untrained_run
from search.settings import SearchJob
from search.untrained.zero_cost import WORST
from supernet.space import SearchSpace
from supernet.training.data import DataConfig
from supernet.training.step import TrainConfig

SPACE = SearchSpace({f"choice.{index}": (0, 1, 2) for index in range(6)})


@pytest.fixture
def archs(numpy_generator):
    return list(dict.fromkeys(SPACE.sample(numpy_generator) for _ in range(150)))


def effects(archs, generator):
    """The sum of an effect of each value of each choice."""
    table = generator.normal(size=(6, 3))
    return table[np.arange(6), SPACE.encode(archs)].sum(axis=1)


def test_it_ranks_better_than_scores_and_choices_by_themselves(archs, numpy_generator):
    by_choices, beside = effects(archs, numpy_generator), 2 * numpy_generator.normal(size=len(archs))
    worth = 90 + by_choices + beside
    scores = np.stack([beside, numpy_generator.normal(size=len(archs))], axis=1)  # the second one says nothing

    def correlation(columns):
        ensemble = Ensemble.fit(SPACE, archs[:30], scores[:30, columns], worth[:30])
        return rank_correlation(ensemble(archs[30:], scores[30:, columns]), worth[30:])

    both = correlation([0, 1])
    assert both > 0.8
    assert both > correlation([]) + 0.2
    assert both > rank_correlation(scores[30:, 0], worth[30:]) + 0.05


def test_it_answers_in_the_unit_of_what_it_learnt(archs, numpy_generator):
    worth = 90 + effects(archs, numpy_generator)
    ensemble = Ensemble.fit(SPACE, archs[:60], np.empty((60, 0)), worth[:60])
    assert np.abs(ensemble(archs[60:], np.empty((len(archs) - 60, 0))) - worth[60:]).max() < 0.3
    assert np.abs(ensemble.left_out - worth[:60]).max() < 0.6


def test_a_score_that_could_not_be_computed_counts_as_the_lowest(archs, numpy_generator):
    scores = numpy_generator.normal(size=(20, 2))
    worth = 90 + scores.sum(axis=1)
    scores[3, 0] = WORST
    ensemble = Ensemble.fit(SPACE, archs[:20], scores, worth)
    lowest = np.delete(scores[:, 0], 3).min()
    failed, low = ensemble([archs[30]] * 2, np.array([[WORST, 0.5], [lowest, 0.5]]))
    assert failed == low
    assert np.isfinite(ensemble.left_out).all()


def test_too_few_networks_and_numbers_that_are_none_are_refused(archs):
    with pytest.raises(ValueError, match="at least 8 evaluations, not 7"):
        Ensemble.fit(SPACE, archs[:7], np.zeros((7, 1)), np.arange(7.0))
    with pytest.raises(ValueError, match="a score is nan; leave failed architectures out"):
        Ensemble.fit(SPACE, archs[:8], np.full((8, 1), np.nan), np.arange(8.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": ()}, "one or more scores, each once"),
        ({"members": ("macs", "macs")}, "one or more scores, each once, not macs, macs"),
        ({"trained": MINIMUM - 1}, "learns from at least 8 trained architectures, not 7"),
        ({"epochs": 0}, "takes at least 1 epoch, not 0"),
    ],
)
def test_an_ensemble_of_nothing_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EnsembleConfig(**settings)


class Alone:
    """What networks are worth, noting which were asked for; some fail, and one stops everything."""

    def __init__(self, fails=(), stops=None):
        self.asked, self._fails, self._stops = [], fails, stops

    def __call__(self, archs):
        (arch,) = archs
        self.asked.append(arch)
        if arch == self._stops:
            raise KeyboardInterrupt
        if arch in self._fails:
            raise ValueError("diverged")
        return [float(sum(arch.values()))]


def by_first_choices(archs):
    return [float(arch["choice.0"] + arch["choice.1"]) for arch in archs]


def test_trainings_that_are_stopped_are_not_repeated(archs, tmp_path):
    archs, members = archs[:12], {"first": by_first_choices}
    stopped = Alone(stops=archs[4])
    with pytest.raises(KeyboardInterrupt):
        EnsembleScore(SPACE, members, stopped, archs, tmp_path, {"seed": 0}).prepare()
    alone = Alone()
    score = EnsembleScore(SPACE, members, alone, archs, tmp_path, {"seed": 0})
    values = score(archs)
    assert stopped.asked == archs[:5]
    assert alone.asked == archs[4:]
    assert rank_correlation(values, [sum(arch.values()) for arch in archs]) > 0.8
    assert pickle.loads(pickle.dumps(score))(archs) == values  # as Ray workers get it
    again = Alone()
    assert EnsembleScore(SPACE, members, again, archs, tmp_path, {"seed": 0})(archs[:3]) == values[:3]
    assert again.asked == []
    report = json.loads((tmp_path / "ensemble.json").read_text())
    assert report["trained"] == 12
    assert report["kendall"]["first"] == rank_correlation(by_first_choices(archs), [sum(a.values()) for a in archs])
    with pytest.raises(ValueError, match="the history of another search: its seed is 0, not 1"):
        EnsembleScore(SPACE, members, again, archs, tmp_path, {"seed": 1}).prepare()


def test_networks_that_fail_are_left_out_while_enough_remain(archs, tmp_path):
    archs, members = archs[:10], {"first": by_first_choices}
    EnsembleScore(SPACE, members, Alone(archs[:2]), archs, tmp_path / "enough", {}).prepare()
    assert json.loads((tmp_path / "enough" / "ensemble.json").read_text())["trained"] == 8
    with pytest.raises(ValueError, match="only 7 of 10 architectures could be scored and trained"):
        EnsembleScore(SPACE, members, Alone(archs[:3]), archs, tmp_path / "few", {}).prepare()
    _, evaluations = read_history(tmp_path / "few" / "trained.jsonl")
    assert [evaluation.error for evaluation in evaluations[:3]] == [f"{TRAINED}: ValueError: diverged"] * 3


def test_a_member_that_fails_is_the_evaluations_error(archs, tmp_path):
    def broken(given):
        if archs[20] in given:
            raise ValueError("broken")
        return by_first_choices(given)

    score = EnsembleScore(SPACE, {"first": broken}, Alone(), archs[:8], tmp_path, {})
    (one, value), (two, error) = sorted(score.each([archs[0], archs[20]]), key=lambda pair: pair[0])
    assert (one, two) == (0, 1)
    assert isinstance(value, float)
    assert str(error) == "first: ValueError: broken"
    with pytest.raises(RuntimeError, match="first: ValueError: broken"):
        score([archs[20]])


def test_a_run_is_searched_by_an_ensemble(tmp_path):
    run = untrained_run("nasbench201", '{"channels": 4, "cells": 1}', DataConfig(holdout=0.8))
    names = list(run.family.space.choices)
    kept = dict.fromkeys(names[:4], ("skip_connect", "nor_conv_1x1")) | dict.fromkeys(names[4:], ("nor_conv_3x3",))
    train = TrainConfig(epochs=1, batch_size=256, warmup_epochs=0)
    run = run._replace(
        family=dataclasses.replace(run.family, space=run.family.space.restrict(kept), input_size=8),
        job=dataclasses.replace(run.job, train=train),
    )
    config = EnsembleConfig(("accuracy", "synflow", "macs"), trained=8, epochs=1)
    job = SearchJob(
        score="ensemble",
        ensemble=config,
        images=40,
        calibration_images=40,
        zero_cost_images=4,
        population=3,
        evaluations=4,
    )
    result = run_search(job, run, {}, tmp_path / "search.jsonl").result
    assert len(result.evaluations) == 4
    settings, _ = read_history(tmp_path / "search.jsonl")
    assert settings["ensemble"]["trained"] == 8
    _, trained = read_history(tmp_path / "ensemble" / "trained.jsonl")
    assert len(trained) == 8
    judge = make_judge(job, run, tmp_path)
    for evaluation in result.evaluations:
        assert evaluation.scores["ensemble"] == judge.score([evaluation.arch])[0]
    by_supernet = make_judge(dataclasses.replace(job, score="accuracy"), run).score
    assert not isinstance(by_supernet, SupernetAccuracy)
    for evaluation in trained:
        assert evaluation.scores["accuracy"] == by_supernet([evaluation.arch])[0]
        assert evaluation.scores["macs"] == run.family.macs(evaluation.arch)
    with pytest.raises(ValueError, match="an ensemble needs a folder"):
        make_judge(job, run)
