"""Spaces by name: the code is found, and imported only where whoever reads a file says it again."""

import dataclasses
import hashlib
import importlib.metadata
import json
import shutil
import sys

import pytest
import torch

from distill.objective import Objective
from supernet.artifacts import formats
from supernet.artifacts.runs import Job, load_run, read_config, read_family, read_job, run_job
from supernet.artifacts.subnet import load_subnet, save_subnet, take_out
from supernet.artifacts.teacher import load_teacher
from supernet.families import FAMILIES
from supernet.families.named import SPACES, find_family, make_family
from supernet.training.data import DataConfig
from supernet.training.execution import Execution
from supernet.training.standalone import ModelJob, read_model_job, run_model_job
from supernet.training.step import TrainConfig

SOURCE = """
from __future__ import annotations

import dataclasses

from torch import nn

from supernet import SearchSpace
from supernet.families import Family

IMPORTED = []


@dataclasses.dataclass(frozen=True)
class Sizes:
    largest: int = 8


def build(arch, drop_rate=0.0, drop_path_rate=0.0):
    layers = [nn.Conv2d(3, arch["width"], 3, 2), nn.BatchNorm2d(arch["width"]), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(drop_rate), nn.Linear(arch["width"], 10))


def tiny(num_classes=10, sizes=(4, 8)):
    if sizes == "wrong":
        return len(5)
    return Family(SearchSpace({"width": tuple(sizes)}), build, num_classes=num_classes, input_size=16)


def other(num_classes=10):
    return "no family"
"""
TRAIN = TrainConfig(epochs=1, batch_size=8, warmup_epochs=0, calibration_images=20)
EXECUTION = Execution(workers=0, eval_epochs=0)
CLASSES = {"num_classes": 10}
DATA = DataConfig(holdout=0.97)


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def job(**changes):
    return Job("mine.py:tiny", data=DATA, train=TRAIN, execution=EXECUTION, **changes)


def test_a_function_is_found_in_a_file_in_a_module_and_among_entry_points(file, monkeypatch):
    family = make_family("mine.py:tiny", '{"sizes": [2, 4, 6]}', CLASSES)
    assert family.space.size == 3
    assert find_family(f"{file}:tiny") is find_family("mine.py:tiny")  # loaded once
    assert find_family("supernet.families:from_timm") is FAMILIES["from_timm"]
    assert find_family("alphanet") is FAMILIES["alphanet"]
    monkeypatch.syspath_prepend(file.parent)
    assert make_family("mine:tiny", "{}", CLASSES).space.size == 2
    entry = importlib.metadata.EntryPoint("tiny", "mine:tiny", "supernet.families")
    monkeypatch.setattr("supernet.own_code.entry_points", lambda group: [entry] * (group == entry.group))
    assert list(SPACES.installed()) == ["tiny"]
    assert find_family("tiny") is sys.modules["mine"].tiny
    assert SPACES.said_again("tiny", None, "runs/mine") == "tiny"  # installed on purpose


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        ("tiny", "{}", r"no search space 'tiny'; the spaces are alphanet, .*, and those of your own, as package\.mod"),
        ("mine.py:small", "{}", r"no search space 'mine\.py:small': mine\.py has no function 'small'"),
        ("mine.py:IMPORTED", "{}", "has no function 'IMPORTED'"),
        ("nowhere.py:tiny", "{}", r"no search space 'nowhere\.py:tiny': no file nowhere\.py"),
        ("nowhere.at.all:tiny", "{}", "Python finds no module 'nowhere'; install it, or name its file"),
        ("mine.py:tiny", '{"width": 3}', r"the options .* do not fit the space 'mine\.py:tiny': .*'width'"),
        ("mine.py:tiny", "{", "the options { do not fit the space"),
        ("mine.py:other", "{}", r"mine\.py:other returns a str, where it should return a supernet\.families\.Family"),
    ],
)
def test_what_is_no_space_is_refused_by_name(file, space, options, message):
    with pytest.raises(ValueError, match=message):
        make_family(space, options, CLASSES)


def test_what_the_data_say_is_passed_where_it_is_taken(file):
    file.write_text(SOURCE + "\n\ndef words(vocabulary):\n    return tiny(sizes=(4, vocabulary))\n")
    said = {"num_classes": 7, "vocabulary": 8}
    assert make_family("mine.py:words", "{}", said).space.largest == {"width": 8}
    assert make_family("mine.py:tiny", "{}", said).num_classes == 7
    assert make_family("mine.py:words", '{"vocabulary": 6}', {"num_classes": 7}).space.largest == {"width": 6}
    for options, missing in (
        ("{}", "missing a required argument: 'vocabulary'"),
        ('{"vocabulary": 3}', "'vocabulary'"),
    ):
        with pytest.raises(ValueError, match=f"do not fit the space 'mine.py:words': .*{missing}"):
            make_family("mine.py:words", options, {} if options == "{}" else said)
    with pytest.raises(
        ValueError, match=r"^the space 'alphanet' takes no vocabulary, which the data say: it is for data"
    ):
        make_family("alphanet", "{}", said)


def test_a_mistake_in_ones_own_code_is_shown_where_it_is(file):
    with pytest.raises(TypeError, match=r"object of type 'int' has no len"):
        make_family("mine.py:tiny", '{"sizes": "wrong"}', CLASSES)
    file.write_text("import nothing_of_this_name")
    with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name"):
        find_family("mine.py:tiny")


def test_a_space_is_the_same_where_its_function_is(file):
    assert SPACES.same("mine.py:tiny", "/elsewhere/mine.py:tiny")
    assert SPACES.same("alphanet", "alphanet")
    assert not SPACES.same("mine.py:tiny", "mine.py:other")
    assert not SPACES.same("alphanet", "mine.py:alphanet")


@pytest.fixture
def run(file, tmp_path):
    return tmp_path / "run", run_job(job(), tmp_path / "run")


def test_a_run_imports_nothing_unless_its_space_is_said_again(run, file, tmp_path):
    folder, trained = run
    config = read_config(folder)
    assert (
        config["space_sha256"] == SPACES.source_digest("mine.py:tiny") == hashlib.sha256(file.read_bytes()).hexdigest()
    )
    (tmp_path / "elsewhere").mkdir()
    moved = file.rename(tmp_path / "elsewhere" / "ours.py")
    file.write_text("raise AssertionError('imported')")
    for read in (load_run, read_family, read_job):
        with pytest.raises(
            ValueError, match=r"run is of the space mine\.py:tiny: code of your own, .* --space mine\.py:tiny \(space="
        ):
            read(folder)
        with pytest.raises(ValueError, match=r"mine\.py:tiny, where mine\.py:other is another: code of your own"):
            read(folder, space="mine.py:other")
    found = load_run(folder, space=f"{moved}:tiny")
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(found.net(images, {"width": 4}), trained.net(images, {"width": 4}))
    assert found.job.space == f"{moved}:tiny"
    again = read_job(folder, space=f"{moved}:tiny")
    run_job(again, folder, resume=True)  # from where the code is now
    assert read_job(folder, space=f"{moved}:tiny") == again


def test_a_changed_file_is_told(run, file, caplog):
    folder, _ = run
    load_run(folder, space="mine.py:tiny")
    assert "has changed" not in caplog.text
    file.write_text(SOURCE + "\n# a remark\n")
    load_run(folder, space="mine.py:tiny")
    assert f"the code of the space mine.py:tiny has changed since {folder} was written" in caplog.text
    caplog.clear()
    run_job(read_job(folder, space="mine.py:tiny"), folder, resume=True)
    assert f"the code of the space mine.py:tiny has changed since {folder} was written" in caplog.text


def test_a_subnet_loads_by_its_space_or_by_its_builder(run, file, tmp_path, caplog):
    folder, trained = run
    subnet = take_out(trained, {"width": 4})
    save_subnet(tmp_path / "subnet", subnet, onnx=False)
    shutil.rmtree(folder)
    images = torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"subnet is of the space mine\.py:tiny: code of your own"):
        load_subnet(tmp_path / "subnet")
    found = load_subnet(tmp_path / "subnet", space="mine.py:tiny")
    build = find_family("mine.py:tiny")().build
    file.unlink()
    built = load_subnet(tmp_path / "subnet", build=build)
    for model, _ in (found, built):
        assert torch.equal(model(images), subnet.model(images))
    assert built.config == subnet.config
    with pytest.raises(ValueError, match=r"does not fit"):
        load_subnet(tmp_path / "subnet", build=lambda arch: build({"width": 8}))


def test_a_single_model_of_ones_own_teaches_and_goes_on(file, tmp_path):
    own = ModelJob("mine.py:tiny", data=DATA, train=dataclasses.replace(ModelJob().train, epochs=1, batch_size=8))
    own = dataclasses.replace(own, execution=EXECUTION)
    save_subnet(tmp_path / "model", run_model_job(own, tmp_path / "model" / "training"), onnx=False)
    with pytest.raises(ValueError, match=r"training is of the space mine\.py:tiny: code of your own"):
        read_model_job(tmp_path / "model" / "training")
    assert read_model_job(tmp_path / "model" / "training", space="mine.py:tiny") == own
    tuned = dataclasses.replace(own, start=str(tmp_path / "model"))
    run_model_job(tuned, tmp_path / "tuned")  # its own space is known
    classes = tuple("0123456789")
    with pytest.raises(ValueError, match=r"model is of the space mine\.py:tiny, where mine\.py:other is another"):
        load_teacher(tmp_path / "model", DATA, classes, space="mine.py:other")
    assert load_teacher(tmp_path / "model", DATA, classes, space="mine.py:tiny")(torch.randn(2, 3, 16, 16)).shape == (
        2,
        10,
    )


def test_what_else_a_job_names_is_said_again_too(file, tmp_path):
    """The space of the teacher and the dataset of the run of a single model."""
    (tmp_path / "evil.py").write_text("raise AssertionError('imported')")
    own = ModelJob("mine.py:tiny", teacher="model", teacher_space="evil.py:teach", objective=Objective(kl=1.0))

    def written(job):
        content = {"format": formats.RUN.label, "job": dataclasses.asdict(job), "dataset_sha256": None}
        content |= {"family_arguments": {}, "held_out": 1}
        (tmp_path / "config.json").write_text(json.dumps(content))
        return job

    job = written(own)
    remedy = r"with --teacher-space evil\.py:teach \(teacher_space= in Python\)"
    for said in (None, "mine.py:tiny"):
        with pytest.raises(ValueError, match=rf"of the teacher-space evil\.py:teach.*: code of your own.* {remedy}"):
            read_model_job(tmp_path, space="mine.py:tiny", teacher_space=said)
    assert read_model_job(tmp_path, space="mine.py:tiny", teacher_space="evil.py:teach") == job
    job = written(dataclasses.replace(own, teacher_space=own.space))
    moved = f"{tmp_path / 'moved.py'}:tiny"
    assert read_model_job(tmp_path, space=moved) == dataclasses.replace(job, space=moved, teacher_space=moved)
    job = written(dataclasses.replace(own, teacher_space="ofa_mobilenet_v3", data=DataConfig("evil.py:images")))
    with pytest.raises(ValueError, match=r"of the dataset evil\.py:images: code of your own"):
        read_model_job(tmp_path, space="mine.py:tiny")
    assert read_model_job(tmp_path, space="mine.py:tiny", dataset="evil.py:images") == job


def test_a_built_in_space_has_no_digest_and_needs_no_name(tmp_path):
    assert SPACES.source_digest("alphanet") is None
    assert (
        SPACES.said_again("alphanet", None, tmp_path)
        == SPACES.said_again("alphanet", "mine.py:tiny", tmp_path)
        == "alphanet"
    )
    assert json.loads(json.dumps(dataclasses.asdict(Job())))["space"] == "mobilenet_v3_micro"
