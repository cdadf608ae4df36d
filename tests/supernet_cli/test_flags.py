"""Flags in a file: what it says, who wins, what is refused, and the file that a run keeps."""

import dataclasses
import re
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import tyro
import yaml

from supernet_cli import model_training, search, train
from supernet_cli.flags import flags, off, parse_flags, typed_words, write_flags


@dataclass(frozen=True)
class Data:
    root: str | None = None
    scale: tuple[float, float] = (0.1, 1.0)


@dataclass(frozen=True)
class Arguments:
    data: Data = field(default_factory=Data)
    lr: float = 0.1
    balanced: bool = False
    onnx: bool = True
    names: tuple[str, ...] = ()
    options: str = "{}"
    most: int | None = None
    family: Annotated[str | None, tyro.conf.arg(aliases=["--space"])] = None
    workers: Annotated[int, tyro.conf.arg(name="data.workers")] = 4
    output: Path | None = None
    resume: bool = False


@pytest.fixture
def parsed(tmp_path, monkeypatch):
    """The arguments by a file of the given text and the given words."""

    def parsed(text, *words, omit_prefixes=False, kind=Arguments):
        (tmp_path / "flags.yaml").write_text(text)
        monkeypatch.setattr(sys, "argv", ["supernet try", "--config", str(tmp_path / "flags.yaml"), *words])
        return parse_flags(kind, "Try.", omit_prefixes=omit_prefixes)

    return parsed


WHOLE = """
lr: 1e-3
data: {root: no, scale: [0.2, 0.9]}
data.workers: 0
balanced: yes
onnx: false
names: [a, "b c"]
options: {width: 1.2, deep: [1, 2]}
most: null
space: -x
output: runs/mine
"""


def test_every_kind_of_value_is_what_it_is_on_the_command_line(parsed):
    expected = Arguments(
        Data("False", (0.2, 0.9)), 1e-3, True, False, ("a", "b c"), '{"width": 1.2, "deep": [1, 2]}', None, "-x", 0
    )
    assert parsed(WHOLE) == dataclasses.replace(expected, output=Path("runs/mine"))


def test_flags_of_the_command_line_win(parsed):
    found = parsed(WHOLE, "--lr", "2", "--no-balanced", "--names", "c", "--family=y", "--data.scale", "0.5", "0.6")
    assert (found.lr, found.balanced, found.names, found.family) == (2, False, ("c",), "y")
    assert (found.data, found.onnx, found.workers) == (Data("False", (0.5, 0.6)), False, 0)


def test_without_prefixes_names_are_those_of_the_flags(parsed):
    assert parsed("root: a\nscale: [0.3, 0.4]", omit_prefixes=True).data == Data("a", (0.3, 0.4))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr: 1\nbalancd: true", "line 2: there is no flag 'balancd'; the nearest is balanced"),
        ("data:\n  rot: x", "line 2: there is no flag 'data.rot'; the nearest is data.root"),
        ("balanced: maybe", "line 1: balanced is true or false, not 'maybe'"),
        ("lr: 1\nlr: 2", "line 2: lr is there twice"),
        ("- lr", "is a mapping of flags to values"),
        ("lr: [", "is no YAML"),
        ("lr: !!python/object/apply:os.getcwd []", "line 1: lr is no plain value: could not determine a constructor"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(parsed, text, said):
    with pytest.raises(ValueError, match=r"flags\.yaml") as error:
        parsed(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config"], "is followed by the file"),
        (["--config", "--lr"], "is followed by the file"),
        (["--config", "a", "--config=b"], "given twice"),
        (["--config", "nowhere.yaml"], "nowhere.yaml cannot be read"),
    ],
)
def test_a_file_that_is_not_named_or_not_there(monkeypatch, words, said):
    monkeypatch.setattr(sys, "argv", ["supernet try", *words])
    with pytest.raises(ValueError, match=said):
        typed_words(Arguments)


def test_what_is_written_is_read_again(parsed, tmp_path):
    arguments = dataclasses.replace(parsed(WHOLE), resume=True)
    write_flags(tmp_path / "kept.yaml", arguments)
    again = parsed((tmp_path / "kept.yaml").read_text())
    assert again == dataclasses.replace(arguments, resume=False)


@pytest.mark.parametrize(("kind", "omit_prefixes"), [(train.Arguments, True), (search.Arguments, False)])
def test_the_names_are_those_that_help_shows(kind, omit_prefixes, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr(sys, "argv", ["supernet try", "--help"])
    with pytest.raises(SystemExit):
        parse_flags(kind, "Try.", omit_prefixes=omit_prefixes)
    shown = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", capsys.readouterr().out))
    found = list(flags(kind, omit_prefixes=omit_prefixes))
    expected = {f"--{name}" for flag in found for name in flag.names}
    expected |= {f"--{off(flag.names[0])}" for flag in found if flag.is_switch}
    assert expected | {"--help", "--config"} == shown | {"--help", "--config"}


def test_a_run_keeps_what_repeats_it(command, tmp_path, monkeypatch):
    jobs = []

    def first_step(job, output, resume, on_step):
        jobs.append(job)
        on_step(None)
        raise ValueError("that was the first step")

    monkeypatch.setattr(train, "run_job", first_step)
    monkeypatch.setattr(train, "training_progress", lambda disable: nullcontext(lambda result: None))
    monkeypatch.chdir(tmp_path)
    Path("short.yaml").write_text("recipe: once_for_all\nroot: images\nbatch-size: 256\nmean: [0.1, 0.2, 1e-1]\n")
    assert "that was" in command("train", "--config", "short.yaml", "--output", "first", "--seed", "3").stderr
    kept = yaml.safe_load(Path("first/train.yaml").read_text())
    assert (kept["recipe"], kept["batch-size"], kept["seed"], "resume" in kept) == ("once_for_all", 256, 3, False)
    assert "that was" in command("train", "--config", "first/train.yaml", "--output", "second").stderr
    assert "that was" in command("train", "--config", "first/train.yaml", "--seed", "4").stderr
    assert len(jobs[0].phases) == 6
    assert jobs[0].data.mean == (0.1, 0.2, 0.1)
    assert jobs[1] == jobs[0]
    assert jobs[2] == dataclasses.replace(jobs[0], train=dataclasses.replace(jobs[0].train, seed=4))


def test_the_flags_of_a_single_model_are_kept_with_its_training(command, tmp_path, monkeypatch):
    jobs = []

    def first_step(job, directory, resume, on_step):
        jobs.append(job)
        on_step(None)
        raise ValueError("that was the first step")

    monkeypatch.setattr(model_training, "training_progress", lambda disable: nullcontext(lambda result: None))
    monkeypatch.setattr(model_training.train, "__defaults__", (first_step,))
    monkeypatch.chdir(tmp_path)
    words = ["--model", "resnet18", "--input-size", "32", "--output", "first", "--epochs", "3"]
    assert "that was" in command("train-standalone", *words).stderr
    assert "that was" in command("train-standalone", "--config", "first/training/train.yaml", "--output", "b").stderr
    assert jobs[0] == jobs[1]
    assert jobs[0].space == "timm"
