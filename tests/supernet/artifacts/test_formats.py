"""Files of former formats are read as of today. Those in former/ were written by the version from before formats had
numbers, by trainings of 43 digits for two epochs, and a search of six evaluations."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

from predictors import LatencyPredictor
from search.history import History, read_history
from search.run import describe, make_problem
from search.settings import SAID_ANEW, SearchJob
from supernet.artifacts.formats import CHECKPOINT, HISTORY, PREDICTOR, RUN, SUBNET
from supernet.artifacts.runs import Job, read_config, read_job, run_job
from supernet.artifacts.subnet import SubnetConfig, read_subnet_config, save_subnet, take_out
from supernet.families import FAMILIES
from supernet.training.data import DataConfig
from supernet.training.execution import Execution
from supernet.training.loop.checkpoint import load_checkpoint, save_checkpoint
from supernet.training.loop.config import LoopConfig
from supernet.training.standalone import ModelJob, read_model_job
from supernet.training.step import TrainConfig

FORMER = Path(__file__).parent / "former"
DATA = DataConfig(holdout=0.97, rules=2).normalised  # as former versions said it
EXECUTION = Execution(
    "cpu", "bf16", False, workers=0, eval_epochs=1, eval_images=20, eval_random=1, log_steps=1, checkpoint_steps=2,
    keep_checkpoints=5,
)  # fmt: skip
TRAIN = TrainConfig(epochs=2, batch_size=8, warmup_epochs=1.0, random_subnets=1, calibration_images=20, seed=3)
JOB = Job(data=DATA, train=TRAIN, execution=EXECUTION)


class Stopped(Exception):
    pass


def stop(result):
    if result.step == 5:
        raise Stopped


def test_a_former_run_is_read_and_goes_on_to_the_same_weights(tmp_path):
    run_job(JOB, tmp_path / "whole")
    with pytest.raises(Stopped):
        run_job(JOB, tmp_path / "run", on_step=stop)
    shutil.copy(FORMER / "run.json", tmp_path / "run" / "config.json")
    assert read_job(tmp_path / "run") == JOB
    unsaid = dataclasses.replace(DATA, mean=None, std=None)
    run_job(dataclasses.replace(read_job(tmp_path / "run"), data=unsaid), tmp_path / "run", resume=True)
    for name in ("supernet.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["format"] == RUN.number == 4
    assert written == read_config(tmp_path / "run")
    former = json.loads((FORMER / "run.json").read_text())
    same = ("classes", "images", "files", "streams", "command", "date", "versions", "hardware")
    assert {name: written[name] for name in same} == {name: former[name] for name in same}
    assert (written["family_arguments"], written["held_out"]) == ({"num_classes": 10}, former["images"]["holdout"])


def test_a_former_single_models_job_is_read(tmp_path):
    shutil.copy(FORMER / "model.json", tmp_path / "config.json")
    expected = ModelJob(
        "timm",
        '{"name": "test_resnet", "input_size": 32}',
        data=DATA,
        train=LoopConfig(epochs=2, batch_size=8, warmup_epochs=1.0, seed=3),
        execution=Execution(**{**vars(EXECUTION), "eval_random": 2}),
    )
    assert read_model_job(tmp_path) == expected


def test_a_run_from_before_rules_goes_by_the_first(tmp_path):
    content = json.loads((FORMER / "run.json").read_text())
    del content["job"]["data"]["rules"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_job(tmp_path).data == DataConfig(holdout=0.97, rules=1).normalised


def test_a_former_subnet_predictor_and_history_are_read(tmp_path):
    shutil.copy(FORMER / "subnet.json", tmp_path / "config.json")
    former = json.loads((FORMER / "subnet.json").read_text())
    config = read_subnet_config(tmp_path)
    assert isinstance(config, SubnetConfig)
    assert json.loads(json.dumps({name: getattr(config, name) for name in former})) == former
    assert config.family_arguments == {"num_classes": 10}
    shutil.copy(FORMER / "predictor.json", tmp_path)
    predictor = LatencyPredictor.load(tmp_path)
    assert (predictor.device.name, len(predictor.codes)) == ("phone", 12)
    settings, evaluations = read_history(FORMER / "search.jsonl")
    assert (settings["strategy"], len(evaluations)) == ("evolution", 6)
    assert evaluations[0].costs["macs"] == 507640


def test_a_former_search_goes_on(tmp_path):
    family = FAMILIES["mobilenet_v3_micro"](num_classes=10)
    for name in ("predictor.json", "search.jsonl"):
        shutil.copy(FORMER / name, tmp_path)
    job = SearchJob(evaluations=6, population=3, images=40, calibration_images=20, race=None)
    problem = make_problem(job, family, {"phone": LatencyPredictor.load(tmp_path, family.space)})
    with History(tmp_path / "search.jsonl", describe(job, problem), True, SAID_ANEW) as history:
        assert len(history.past) == 6


@pytest.mark.parametrize(
    ("strategy", "score", "as_of_today"),
    [
        ("evolution", None, ("evolution", "accuracy")),
        ("local", "zero_cost", ("local", "zero_cost")),
        ("zero_cost", None, ("evolution", "zero_cost")),
        ("rdm", "rdm", ("evolution", "rdm")),
        ("te_nas", None, (None, "te_nas")),
        ("dna", "dna", (None, "dna")),
    ],
)
def test_a_score_was_called_a_strategy(strategy, score, as_of_today, tmp_path):
    found = HISTORY.upgraded({"strategy": strategy, "score": score}, "supernet search history 1", tmp_path)
    job = SearchJob(None if strategy == as_of_today[1] else strategy, score=as_of_today[1])
    assert (found["strategy"], found["score"]) == (job.searches_by, job.score) == as_of_today


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    """Files of today's formats or former ones, with the number of one that is not known."""
    folder = tmp_path_factory.mktemp("newer")
    run = run_job(Job(data=DATA, train=TRAIN, execution=Execution(workers=0, eval_epochs=0)), folder / "run")
    save_subnet(folder / "subnet", take_out(run, run.family.space.smallest, 20), onnx=False)
    for path, name in ((folder / "run" / "config.json", "format"), (folder / "subnet" / "config.json", "format")):
        content = json.loads(path.read_text())
        assert content[name] == (RUN if path.parent.name == "run" else SUBNET).number
        path.write_text(json.dumps(content | {name: 99}))
    content = json.loads((FORMER / "predictor.json").read_text())
    assert content["version"] == 2
    (folder / "predictor.json").write_text(json.dumps(content | {"version": 99}))
    text = (FORMER / "search.jsonl").read_text()
    label = json.loads(text.splitlines()[0])["format"]
    assert label == "supernet search history 1"
    (folder / "search.jsonl").write_text(text.replace(label, "supernet search history 99"))
    return folder


@pytest.mark.parametrize(
    ("read", "name", "kind", "label"),
    [
        (lambda folder: read_config(folder / "run"), "run/config.json", RUN, "99"),
        (lambda folder: read_subnet_config(folder / "subnet"), "subnet/config.json", SUBNET, "99"),
        (LatencyPredictor.load, "predictor.json", PREDICTOR, "99"),
        (lambda folder: read_history(folder / "search.jsonl"), "search.jsonl", HISTORY, "'supernet search history 99'"),
    ],
)
def test_a_newer_format_is_refused_in_one_line(newer, read, name, kind, label):
    message = f"{newer / name} is a {kind.kind} of format {label}, and this version of the package reads 1 to "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}{kind.number}: take the version that wrote it.*$"):
        read(newer)


def test_a_checkpoint_of_a_newer_format_is_no_damaged_one(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, {}, keep=2)
    monkeypatch.setattr(
        "supernet.training.loop.checkpoint.CHECKPOINT", type(CHECKPOINT)("", (dict,), CHECKPOINT.prefix)
    )
    save_checkpoint(tmp_path, 2, {}, keep=2)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"step-000000002\.pt is a checkpoint of a training of format .*-2', and"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("label", [0, -1, 1.5, "1", None, True, [1], "²"])
def test_what_is_no_number_of_a_format_is_refused(label, tmp_path):
    if label == "1":
        assert HISTORY.number_of("supernet search history 1", tmp_path) == 1
        assert HISTORY.label == "supernet search history 5"
    else:
        with pytest.raises(ValueError, match="and this version of the package reads 1 to 4"):
            RUN.number_of(label, tmp_path)


def test_a_history_of_format_2_had_blocks_without_clipping_or_average(tmp_path):
    settings = {"score": "dna", "dna": {"epochs": 5, "points": ["a"]}}
    found = HISTORY.upgraded(settings, "supernet search history 2", tmp_path)
    assert found["dna"] == {"epochs": 5, "points": ["a"], "clip": None, "clip_mode": "norm", "ema_decay": None}
    assert HISTORY.upgraded({"space": "x"}, "supernet search history 2", tmp_path) == {"space": "x"}


def test_a_history_of_format_3_had_images_prepared_at_each_resolution(tmp_path):
    found = HISTORY.upgraded({"score": "accuracy", "calibration_images": 5}, "supernet search history 3", tmp_path)
    assert found == {"score": "accuracy", "calibration_images": 5, "resize_images": False}
    assert HISTORY.upgraded({"space": "x"}, "supernet search history 3", tmp_path) == {"space": "x"}
