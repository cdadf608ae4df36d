"""The commands of jobs are commands of ours, with flags that they have, and choices are made on held-out images."""

import dataclasses
import json
import os
import sys

import pytest
import tyro

from service.archive import ImageFacts
from service.plan import make_plan
from service.request import JobRequest
from service.stages import LADDER, Setting, chosen_arch, epochs_within, seconds_an_epoch, smaller_model, stages_of
from supernet.artifacts import formats
from supernet.artifacts.subnet_config import SubnetConfig
from supernet.families import FAMILIES
from supernet.training.recipes import RECIPES

FACTS = ImageFacts(("a", "b"), train=480, val=120, least_of_a_class=240, side=8)
REQUESTS = {
    "from scratch": (JobRequest(5, limits={"latency_ms": 1, "stored_bytes": 1e6, "accuracy_drop": 1}), FACTS),
    "own device": (JobRequest(5, "own:my-phone", {"latency_ms": 1}, flip=True, epochs=3), FACTS),
    "model": (JobRequest(5, "phone", {"activation_bytes": 1e6}, "int8", model="resnet18", weights="uploaded"), FACTS),
    "few": (
        JobRequest(5, model="resnet18", weights="uploaded", precision="int8"),
        dataclasses.replace(FACTS, least_of_a_class=5),
    ),
}


@pytest.fixture
def parsed(command, monkeypatch):
    """Run a command until its command line is parsed; what came out is its return code."""
    cli = tyro.cli

    def parse(*arguments, **settings):
        cli(*arguments, **settings)
        sys.exit("parsed")

    monkeypatch.setattr(tyro, "cli", parse)
    return command


@pytest.mark.parametrize("case", REQUESTS)
def test_commands_have_the_flags_that_stages_give(parsed, monkeypatch, tmp_path, case):
    request, facts = REQUESTS[case]
    plan = dataclasses.replace(make_plan(request, facts), sources=("phone",))
    setting = Setting(tmp_path, plan, tmp_path / "devices")
    subnet_of(tmp_path / "subnet")
    for stage in stages_of(plan):
        words = list(map(str, stage.arguments(setting, 60.0)))
        if stage.name == "probe":
            (tmp_path / "probe").mkdir()
            for name in ("config.json", "supernet.safetensors"):
                (tmp_path / "probe" / name).touch()
        if stage.name in ("finetune", "baseline-smaller", "quantise", "baseline-int8", "evaluate"):
            run_of(tmp_path / "run")
        monkeypatch.chdir(tmp_path)
        result = parsed(*words)
        assert result.returncode == "parsed", (words, result.stderr)
        assert stage.output is None or stage.output.split("/")[0] in " ".join(words)
    names = [stage.name for stage in stages_of(plan)]
    assert ("suggest" in names, "probe" in names, "quantise" in names, "finetune" in names) == (
        case == "own device",
        case in ("from scratch", "model"),
        case in ("model", "few"),
        case == "model",
    )
    ends = [stage.until for stage in stages_of(plan) if stage.until < 1]
    assert ends == sorted(ends)


def run_of(folder):
    """What commands ask of a run before they have parsed their flags."""
    folder.mkdir(exist_ok=True)
    job = dataclasses.asdict(RECIPES["cifar10"]())
    data = {"classes": ["a", "b"], "family_arguments": {"num_classes": 2}, "held_out": 48, "dataset_sha256": None}
    config = {"format": formats.RUN.label, "job": job, **data}
    (folder / "config.json").write_text(json.dumps(config))


def subnet_of(folder):
    """What commands ask of a subnet before they have parsed their flags."""
    family = FAMILIES["mobilenet_v3_micro"](num_classes=2)
    arch, colours = family.space.smallest, (0.5, 0.5, 0.5)
    facts = {"macs": family.macs(arch)}
    config = SubnetConfig(
        "mobilenet_v3_micro", "{}", dict(arch), ("a", "b"), (3, 24, 24), colours, colours, "bicubic", 1.0, facts=facts
    )
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.content()))


def front(folder, rows):
    (folder / "searched").mkdir(exist_ok=True)
    header = 'accuracy,here,"here, within limit","here, measured",arch'
    (folder / "searched" / "front.csv").write_text("\n".join([header, *rows]) + "\n")


def test_the_most_accurate_that_keeps_the_limit_is_chosen(tmp_path):
    plan = make_plan(JobRequest(5, limits={"latency_ms": 1.0}), FACTS)
    assert chosen_arch(tmp_path, plan) is None
    front(tmp_path, ["0.7,0.8,0.99,0.9,small", "0.8,0.9,0.9,0.99,middle", "0.9,0.95,0.6,1.01,large"])
    assert chosen_arch(tmp_path, plan) == "middle"
    front(tmp_path, ["0.7,0.8,0.99,1.2,small", "0.9,0.95,0.6,1.1,large"])
    assert chosen_arch(tmp_path, plan) == "large"  # nearest to the limit
    front(tmp_path, ["0.7,0.8,0.99,,small", "0.8,0.9,0.96,,middle", "0.9,0.95,0.6,,large"])
    assert chosen_arch(tmp_path, plan) == "middle"  # probable enough, where nothing is measured
    unlimited = make_plan(JobRequest(5), FACTS)
    front(tmp_path, ["0.7,0.8,,0.9,small", "0.9,0.95,,1.1,large"])
    assert chosen_arch(tmp_path, unlimited) == "large"


def test_epochs_fill_the_time():
    assert [epochs_within(seconds, 8.0) for seconds in (1, 19, 99, 10**6)] == [1, 1, 9, 100]


def test_an_epoch_is_timed_without_the_start_of_the_training(tmp_path):
    for name, when in (("config.json", 1000.0), ("supernet.safetensors", 1012.5)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (when, when))
    assert seconds_an_epoch(tmp_path) == 12.5


@pytest.mark.parametrize(("megamacs", "name"), [(LADDER[0][1], LADDER[0][0]), (60, LADDER[1][0]), (5000, "resnet50")])
def test_the_next_smaller_model_has_no_more_macs(tmp_path, megamacs, name):
    found_with(tmp_path, megamacs)
    assert smaller_model(tmp_path) == name


def test_there_is_no_smaller_model_than_the_smallest(tmp_path):
    found_with(tmp_path, 0.99 * LADDER[0][1])
    with pytest.raises(ValueError, match=f"the smallest .*, {LADDER[0][0]}, takes more MACs than what was found"):
        smaller_model(tmp_path)


def found_with(folder, megamacs):
    """A subnet that would take so many MACs at 224 pixels."""
    (folder / "subnet").mkdir()
    config = {"arch": {}, "input_size": [3, 112, 112], "facts": {"macs": megamacs * 1e6 / 4}}
    (folder / "subnet" / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("name", "megamacs"), LADDER[:4])
def test_the_ladder_has_the_macs_of_timms_models(name, megamacs):
    import timm
    import torch

    from supernet.costs import count_macs

    with torch.device("meta"):
        model = timm.create_model(name).eval()
        macs = count_macs(model, torch.empty(1, 3, 224, 224))
    assert macs / 1e6 == pytest.approx(megamacs, rel=0.05)
