"""Flags that nothing reads: each command names those that it is given."""

import dataclasses
import importlib
import sys
import typing

import pytest
import tyro

from supernet.conditions import ABSENT, GIVEN, Other, Unread
from supernet_cli import flags
from supernet_cli.main import COMMANDS, module


class Parsed(Exception):
    """Ends a command once its flags are read."""


@pytest.fixture
def unread_flags(monkeypatch):
    """What the command says of the words that have no effect."""

    def unread_flags(command, *words):
        found = []

        def note(*arguments, **options):
            found.extend(flags_without_effect(*arguments, **options))
            raise Parsed

        flags_without_effect = flags.without_effect
        monkeypatch.setattr(sys, "argv", [f"supernet {command}", *words])
        monkeypatch.setattr(flags, "without_effect", note)
        with pytest.raises(Parsed):
            importlib.import_module(f"supernet_cli.{module(command)}").main()
        return found

    return unread_flags


def flags_of(command, monkeypatch):
    """The dataclass that a command's flags fill, and these."""

    def parsed(kind, *, config, **_):
        raise Parsed(kind, tyro.conf.OmitArgPrefixes in config)

    monkeypatch.setattr(sys, "argv", [f"supernet {command}"])
    monkeypatch.setattr(tyro, "cli", parsed)
    with pytest.raises(Parsed) as found:
        importlib.import_module(f"supernet_cli.{module(command)}").main()
    kind, omit_prefixes = found.value.args
    return kind, list(flags.flags(kind, omit_prefixes=omit_prefixes))


def beside(kind, fields):
    """The types of the settings that lie where `fields` lead, by name."""
    for name in fields:
        hint = typing.get_type_hints(kind)[name]
        kind = hint
    return typing.get_type_hints(kind)


@pytest.mark.parametrize("command", COMMANDS)
def test_conditions_name_settings_and_values_that_there_are(command, monkeypatch):
    kind, found = flags_of(command, monkeypatch)
    for flag in found:
        for condition in flag.conditions:
            hints = beside(kind, condition.settings)
            if isinstance(condition.mark, Unread):
                groups = [hint for hint in hints.values() if dataclasses.is_dataclass(hint)]
                names = {field.name for group in groups for field in dataclasses.fields(group)}
                assert names.issuperset(condition.mark.names)
                continue
            for name, values in condition.mark.where:
                options = typing.get_args(hints[name]) if typing.get_origin(hints[name]) is typing.Literal else None
                listed = values.values if isinstance(values, Other) else values
                assert values in (GIVEN, ABSENT) or options is None or set(listed) < set(options)


UNREAD = [
    (
        "train",
        "--trials 5 --no-scale-lr --decay-epochs 3 --clip-mode=value --max_failures 1 --feature-epochs 2 "
        "--eval-epochs 0 --eval-random 3",
        [
            "--decay-epochs has no effect with --sched cosine, only with step",
            "--clip-mode has no effect without --clip",
            "--trials has no effect with --method sandwich, only with best_up or worst_up",
            "--eval-random has no effect without --eval-epochs",
            "--feature-epochs has no effect without --unlabelled",
            "--max-failures has no effect without --cluster",
        ],
    ),
    ("train", "--method best_up --trials 5 --sched step --decay-epochs 3 --clip 1 --clip-mode value", []),
    (
        "train",
        "--root images --test-root=images",
        ["--root has no effect with --dataset digits", "--test-root has no effect with --dataset digits"],
    ),
    ("train", "--root images --dataset folder", []),
    ("train", "--find-lr 10 --cluster local", ["--cluster has no effect beside --find-lr"]),
    (
        "train-netaug",
        "--output out --input-size 32 --teacher-weights w.pth --aggregation-epochs 3",
        [
            "--teacher-weights has no effect without --teacher",
            "--aggregation-epochs has no effect with --aggregation last, only with searched",
            "--input-size has no effect without --model",
        ],
    ),
    ("train-standalone", "--output out --model resnet18 --input-size 32", []),
    (
        "search",
        "--run r --teacher t --rdm.epochs 3 --data.root x --threads 4 --zero-cost synflow",
        [
            "--data.root has no effect beside --run",
            "--zero-cost has no effect with --score accuracy, only with zero_cost",
            "--teacher has no effect with --score accuracy, only with rdm or dna or akd",
            "--rdm.epochs has no effect with --score accuracy, only with rdm",
            "--threads has no effect without --workers",
        ],
    ),
    ("search", "--run r --strategy rdm --teacher t --rdm.epochs 3 --threads 4 --workers 2", []),
    (
        "evaluate",
        "a --hflip 0.5 --no-latency --threads 2 --errors 3 --pgd-epsilon 2 --crop-pct 0.9",
        [
            "--hflip has no effect in this command",
            "--threads has no effect without --latency",
            "--errors has no effect without --output",
            "--pgd-epsilon has no effect without --robustness",
        ],
    ),
    ("quantise", "--subnet a --output out --ranking-images 3", ["--ranking-images has no effect without --limits"]),
    ("prune", "--subnet a --sensitivity s.svg --step 8", ["--step has no effect beside --sensitivity"]),
    (
        "pipeline",
        "--run r --output out --stages prune store --epochs 3 --bits 4",
        ["--epochs has no effect with --stages prune store, only with tune"],
    ),
    ("extract", "--run r --output out --line 3", ["--line has no effect without --history"]),
    ("fit-latency", "--suggest 10 --name phone", ["--name has no effect beside --suggest"]),
    ("measure-latency", "--export-only f --rounds 3", ["--rounds has no effect beside --export-only"]),
    (
        "compress",
        "--output out --post-training --centroid-lr 1",
        ["--centroid-lr has no effect beside --post-training"],
    ),
]


@pytest.mark.parametrize(("command", "words", "expected"), UNREAD)
def test_what_nothing_reads_is_named(command, words, expected, unread_flags):
    assert unread_flags(command, *words.split()) == expected
