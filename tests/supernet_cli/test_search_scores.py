"""`supernet search` and `supernet zero-cost` by scores other than the supernet's accuracy, within this process."""

import json
import sys

import pytest

from search.history import read_history
from search.untrained.ensemble import mean_rank
from supernet_cli import search, zero_cost

FEW = ["--images", "40", "--calibration-images", "40", "--population", "3"]
SPACE = ["--space", "nasbench201", "--space-options", '{"channels": 4, "cells": 1}', "--data.workers", "0"]


@pytest.fixture
def call(monkeypatch):
    """Runs a command's main with command-line arguments."""

    def call(command, *arguments):
        monkeypatch.setattr(sys, "argv", [f"supernet {command.__name__}", *map(str, arguments)])
        command.main()

    return call


def test_a_run_is_searched_by_how_it_resembles_a_teacher(call, folder, tmp_path):
    run = ["--run", folder / "run", "--teacher", folder / "run", "--output", tmp_path]
    call(search, *run, "--score", "rdm", "--evaluations", 4, *FEW, "--rdm.weight", 0.5)
    settings, evaluations = read_history(tmp_path / "search.jsonl")
    assert settings["scores"] == ["rdm"]
    assert settings["rdm"]["weight"] == 0.5
    assert len(evaluations) == 4
    assert not any(evaluation.error for evaluation in evaluations)


def test_a_run_is_searched_by_blocks(call, folder, tmp_path):
    run = ["--run", folder / "run", "--teacher", folder / "run", "--output", tmp_path, "--limits", "macs=2e6"]
    blocks = ["--dna.epochs", 1, "--dna.batch-size", 256, "--dna.points", "blocks.0", "--dna.cuts", "blocks.0"]
    call(search, *run, "--score", "dna", "--evaluations", 3, *FEW, *blocks)
    settings, evaluations = read_history(tmp_path / "search.jsonl")
    assert settings["scores"] == ["dna"]
    ratings = [evaluation.scores["dna"] for evaluation in evaluations]
    assert len(ratings) == 2
    assert ratings == sorted(ratings, reverse=True)
    assert all(evaluation.costs["macs"] <= 2e6 for evaluation in evaluations)
    paths = [len(block["paths"]) for block in json.loads((tmp_path / "dna" / "ratings.json").read_text())["blocks"]]
    assert paths == [2]


def test_a_space_is_searched_without_a_run(call, tmp_path):
    options = ["--score", "zero_cost", "--evaluations", 4, "--population", 3, "--zero-cost", "synflow", "parameters"]
    call(search, *SPACE, *options, "--zero-cost-images", 4, "--output", tmp_path)
    settings, evaluations = read_history(tmp_path / "search.jsonl")
    assert settings["scores"] == ["zero_cost"]
    assert len(evaluations) == 4
    assert all(0 <= evaluation.scores["zero_cost"] <= 1 for evaluation in evaluations)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say which run to search with --run, or which space with --space"),
        ([*SPACE, "--strategy", "evolution"], "the score accuracy needs a trained supernet"),
        ([*SPACE, "--score", "te_nas"], "say where the results go with --output"),
        (["--run", "RUN", "--score", "dna"], "the score dna needs a teacher"),
        (["--run", "RUN", "--score", "rdm", "--teacher", "resnet18x"], "timm has no model 'resnet18x'"),
        (
            ["--run", "RUN", "--strategy", "te_nas", "--score", "dna"],
            "te_nas is no strategy but a score: say --score te_nas",
        ),
    ],
)
def test_bad_input_is_named(call, folder, tmp_path, arguments, message):
    given = [folder / "run" if argument == "RUN" else argument for argument in arguments]
    given += [] if "te_nas" in arguments and SPACE[0] in arguments else ["--output", tmp_path / "out"]
    with pytest.raises(ValueError, match=message):
        call(search, *given)
    assert not (tmp_path / "out" / "search.jsonl").exists()


def test_zero_cost_scores_of_sampled_architectures(call, tmp_path, capsys):
    output = tmp_path / "scores.jsonl"
    call(zero_cost, *SPACE, "--scores", "synflow,macs", "--archs", 4, "--batch-size", 4, "--output", output)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(lines) == 4
    ranks = [line["rank"] for line in lines]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks == mean_rank([[line[name] for line in lines] for name in ("synflow", "macs")]).tolist()
    assert "synflow" in capsys.readouterr().out
    with pytest.raises(ValueError, match="there is no score 'flops'"):
        call(zero_cost, *SPACE, "--scores", "flops")
    with pytest.raises(ValueError, match="archs is at least 2, not 1"):
        call(zero_cost, *SPACE, "--archs", 1)


def test_a_score_that_is_given_as_a_strategy_is_read_as_the_score_and_said(call, tmp_path, capsys):
    options = ["--strategy", "zero_cost", "--evaluations", 2, "--population", 2, "--zero-cost", "parameters"]
    call(search, *SPACE, *options, "--zero-cost-images", 4, "--output", tmp_path)
    assert "zero_cost is a score: --strategy zero_cost is read as --score zero_cost" in capsys.readouterr().out
    settings, _ = read_history(tmp_path / "search.jsonl")
    assert (settings["strategy"], settings["score"]) == ("evolution", "zero_cost")


def test_a_score_of_images_is_refused_for_a_space_of_texts_in_one_line(command):
    result = command("zero-cost", "--space", "text_encoder", "--scores", "synflow", "--archs", "2")
    assert "the data are images, and the networks of this space take something else" in result.stderr
    assert result.returncode != 0
