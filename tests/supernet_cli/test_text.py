"""From a table of texts to a network for another runtime, by the ordinary commands; docs/tutorials/text.md searches,
too."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from exits import Chain
from supernet.artifacts.export import onnx_runner
from supernet.artifacts.runs import load_run
from supernet.artifacts.subnet import load_subnet
from supernet.evaluation import evaluate
from supernet.training.data.text import tokens_of

tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")

SMALL = {"embed_dim": [16, 32], "depth": [1, 2], "num_heads": [1, 2], "head_dim": 8, "mlp_ratio": [1, 2]}
OPTIONS = {"label": "topic", "length": 8, "vocabulary": 300, "test": 0.2, "holdout": 0.2, "token_dropout": 0.05}
WORDS = {"sport": ("goal", "match", "team"), "trade": ("market", "price", "stock"), "tech": ("chip", "code", "data")}


def done(command, *arguments):
    result = command(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folder(command, tmp_path_factory):
    """A folder with a table, and what the commands made of it."""
    folder = tmp_path_factory.mktemp("text")
    draw = np.random.default_rng(0)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["topic", "text"])
        for topic in (list(WORDS)[index % 3] for index in range(300)):
            words = [*draw.choice(WORDS[topic], 2), *draw.choice(["a", "the", "of", "and"], draw.integers(1, 4))]
            writer.writerow([topic, " ".join(draw.permutation(words))])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done(command, "train", "--recipe", "text", "--root", "table.csv", "--space-options", json.dumps(SMALL),
             "--dataset-options", json.dumps(OPTIONS), "--epochs", "12", "--batch-size", "16", "--lr", "0.01",
             "--output", "run")  # fmt: skip
        done(command, "extract", "--run", "run", "--largest", "--output", "subnet")
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def test_what_was_trained_is_learnt():
    facts = json.loads(Path("subnet/config.json").read_text())["facts"]
    assert facts["accuracy"] > 0.9
    config = json.loads(Path("run/config.json").read_text())
    vocabulary = tokenizers.Tokenizer.from_file("run/tokenizer.json").get_vocab_size()
    assert config["family_arguments"] == {"num_classes": 3, "vocabulary": vocabulary, "length": 8, "padding": 0}


def test_a_subnet_and_its_tokenizer_read_any_text_without_the_run():
    assert Path("subnet/tokenizer.json").read_text() == Path("run/tokenizer.json").read_text()
    tokenizer = tokenizers.Tokenizer.from_file("subnet/tokenizer.json")
    tokens = tokens_of(tokenizer, ["the goal of a team", "market and stock", "data"], 8, padding=0).long()
    mask = (tokens != 0).long()
    model, config = load_subnet("subnet")
    assert config.classes == ("sport", "tech", "trade")
    assert [config.classes[index] for index in model(tokens, mask).argmax(1)] == ["sport", "trade", "tech"]
    assert config.input_names == ("tokens", "mask")
    for file in ("model.onnx", "model.int8.onnx"):
        logits = onnx_runner(f"subnet/{file}")(tokens, mask)
        torch.testing.assert_close(
            logits, model(tokens, mask).detach(), atol=1e-5 if file == "model.onnx" else 0.5, rtol=0
        )


def test_subnets_are_evaluated_on_the_table(command, tmp_path):
    run = load_run("run")
    model, config = load_subnet("subnet")
    facts = evaluate(model, run.family.task, [run.data.test], run.net.space.validate(config.arch))
    done(command, "evaluate", "subnet", "--run", "run", "--runtime", "torch", "--json", tmp_path / "found.json")
    (row,) = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert row["accuracy"] == pytest.approx(facts["accuracy"]) == pytest.approx(config.facts["accuracy"])
    assert row["latency_ms"] > 0


def test_a_table_that_has_changed_is_refused(command, tmp_path):
    lines = Path("table.csv").read_text().splitlines()
    (tmp_path / "other.csv").write_text("\n".join(lines[:-1]))
    result = command("search", "--run", "run", "--root", tmp_path / "other.csv", "--output", "other")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "the data have changed since run was begun" in result.stderr


def test_a_space_of_images_is_refused(command):
    result = command("train", "--recipe", "text", "--root", "table.csv", "--space", "mobilenet_v3_micro",
                     "--dataset-options", json.dumps(OPTIONS), "--output", "other")  # fmt: skip
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "the space 'mobilenet_v3_micro' takes no vocabulary, which the data say" in result.stderr


def test_exits_on_texts_are_trained_and_one_of_two_networks_is_chosen(command):
    narrow = {**json.loads(Path("subnet/config.json").read_text())["arch"], "embed_dim": 16}
    done(command, "extract", "--run", "run", "--arch", json.dumps(narrow), "--no-onnx", "--output", "narrow")
    words = "exits", "--subnet", "subnet", "narrow", "--run", "run", "--output", "exits"
    refused = command(*words, "--limit-ms", "0.000001").stderr
    assert "not even the first exit of any network is within 1e-06 ms: the fastest takes" in refused
    assert not Path("exits").exists()  # before anything is trained
    done(command, *words, "--epochs", "2", "--limit-ms", "1000")
    found = json.loads(Path("exits/exits.json").read_text())
    networks = {one["network"]: one for one in found["networks"]}
    assert [one["folder"] for one in networks.values()] == ["1", "2"]
    assert networks["subnet"]["after"] == networks["narrow"]["after"] == ["blocks.0"]
    assert {one["kind"] for one in found["compared"]} == {"fixed", "patience", "entropy", "confidence"}
    assert {one["network"] for one in found["compared"]} <= networks.keys()
    assert networks["subnet"]["whole"]["accuracy"] > 0.8
    assert found["chosen"]["latency_ms"] <= found["chosen"]["limit_ms"] == 1000
    assert found["chosen"]["accuracy"] > 0.8
    assert Path("exits/exits.svg").exists()
    tokens = tokenizers.Tokenizer.from_file("run/tokenizer.json").encode("goal match").ids
    logits, _ = Chain("exits/chain")(np.array([tokens]))
    assert sorted(WORDS)[logits.argmax()] == "sport"
    assert "holds a network with exits already; name another folder" in command(*words).stderr


def test_kinds_of_weights_are_rounded_on_texts(command):
    told = done(command, "sensitivity", "--subnet", "subnet", "--run", "run", "--bits", "4")
    assert all(kind in told for kind in ("query", "value", "embedding", "head"))
