"""Searches by scores other than accuracy, as jobs."""

import dataclasses

import numpy as np
import pytest

from search.history import read_history
from search.run import run_search
from search.scores.judges import JUDGES, make_judge, training_batch, untrained_run
from search.scores.untrained import TrainingFreeScore
from search.settings import SCORES, SearchJob
from search.untrained.proxies import nasbench_macro_proxies
from search.untrained.te_nas import TeNasConfig, prunable, search_by_pruning
from supernet.training.data import DataConfig

SMALL = TeNasConfig(repeats=1, ntk_images=4, region_images=40, batch_norm="frozen")
TE_NAS = SearchJob(score="te_nas", te_nas=SMALL, population=3, evaluations=5, zero_cost_images=4)


@pytest.fixture(scope="module")
def cells():
    """NAS-Bench-201 with three undecided edges of two operations."""
    run = untrained_run("nasbench201", '{"channels": 4, "cells": 1}', DataConfig())
    names = list(run.family.space.choices)
    kept = dict.fromkeys(names[:3], ("skip_connect", "nor_conv_1x1")) | dict.fromkeys(names[3:], ("nor_conv_3x3",))
    return run._replace(family=dataclasses.replace(run.family, space=run.family.space.restrict(kept)))


def test_te_nas_prunes_operations_and_names_its_score_in_the_history(cells, tmp_path, monkeypatch):
    found = []

    def prune(*arguments):
        found.append(search_by_pruning(*arguments))
        return found[-1]

    monkeypatch.setattr("search.scores.judges.search_by_pruning", prune)
    outcome = run_search(TE_NAS, cells, {}, tmp_path / "search.jsonl")
    (evaluation,) = outcome.result.evaluations
    assert [evaluation.arch] == found
    settings, evaluations = read_history(tmp_path / "search.jsonl")
    assert settings["scores"] == ["te_nas"]
    assert settings["te_nas"]["ntk_images"] == 4
    assert settings["images"] is None  # all, where there are no more than by default
    assert evaluations == [evaluation]
    judge = make_judge(TE_NAS, cells)
    assert evaluation.scores == {"te_nas": judge.score(found)[0]}


def test_under_limits_te_nas_evolves(cells):
    limit = float(
        np.mean([cells.family.macs(end) for end in (cells.family.space.smallest, cells.family.space.largest)])
    )
    job = SearchJob(
        score="te_nas", te_nas=SMALL, population=3, evaluations=4, zero_cost_images=4, limits={"macs": limit}
    )
    evaluations = run_search(job, cells, {}).result.evaluations
    assert len(evaluations) == 4
    assert all(evaluation.costs["macs"] <= limit for evaluation in evaluations)


def test_a_network_in_one_piece_is_not_pruned():
    run = untrained_run("nasbench_macro", "{}", DataConfig())
    assert not prunable(run.family.space, nasbench_macro_proxies())


def test_any_strategy_may_go_by_zero_cost_scores(cells):
    names = ("synflow", "parameters")
    job = SearchJob("local", score="zero_cost", zero_cost=names, zero_cost_images=4, population=6, evaluations=8)
    result = run_search(job, cells, {}).result
    assert len(result.evaluations) == cells.family.space.size == 8
    batch = training_batch(cells.data, 32, 4, job.seed)
    score = TrainingFreeScore(cells.family, names, batch, reference=6)
    for evaluation in result.evaluations:
        assert evaluation.scores["zero_cost"] == score([evaluation.arch])[0]


def test_every_score_has_its_judge():
    assert tuple(JUDGES) == SCORES


def test_what_does_not_fit_together_is_named(cells):
    with pytest.raises(ValueError, match="there is no score 'flops'; the scores are accuracy, te_nas, zero_cost"):
        SearchJob(score="flops")
    with pytest.raises(ValueError, match="te_nas is no strategy but a score: say --score te_nas"):
        SearchJob("te_nas", score="zero_cost")
    with pytest.raises(
        ValueError, match=r"there is no strategy 'tenas'; the strategies are evolution, .*, random, local"
    ):
        SearchJob("tenas")
    with pytest.raises(ValueError, match="there is no score 'syncflow'"):
        make_judge(SearchJob(score="zero_cost", zero_cost=("syncflow",)), cells)
    micro = untrained_run("mobilenet_v3_micro", "{}", DataConfig())
    with pytest.raises(ValueError, match="regions cannot be counted in this space"):
        make_judge(TE_NAS, micro)
