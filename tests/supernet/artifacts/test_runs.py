"""How runs begin, go on, and move."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from supernet.artifacts.runs import Job, data_of, load_run, read_config, read_job, run_job
from supernet.training.data import DataConfig
from supernet.training.execution import LOCATION, Execution, differences
from supernet.training.loop.config import LoopConfig
from supernet.training.loop.divergence import TrainingError
from supernet.training.standalone import ModelJob, read_model_job, run_model_job
from supernet.training.step import TrainConfig

TRAIN = TrainConfig(
    epochs=2, batch_size=4, method="spos", random_subnets=1, warmup_epochs=0, calibration_images=8,
)  # fmt: skip
EXECUTION = Execution(workers=0, eval_epochs=0, checkpoint_steps=100, log_steps=1)


class Stopped(Exception):
    pass


def stop_after(step):
    def on_step(result):
        if result.step == step:
            raise Stopped

    return on_step


@pytest.fixture
def images(tmp_path):
    """Two classes of 6 images to train on and 2 to test on."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 6), ("validation", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(draw.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "images"


@pytest.fixture
def job(images):
    return Job(data=DataConfig("folder", str(images), holdout=0.34), train=TRAIN, execution=EXECUTION)


@pytest.fixture
def begun(job, tmp_path):
    """A run that was stopped in its third step of four, without a checkpoint."""
    with pytest.raises(Stopped):
        run_job(job, tmp_path / "run", on_step=stop_after(3))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"execution": Execution("cuda:99", workers=0)}, ValueError),
        ({"std": (1e-45, 1.0, 1.0)}, TrainingError),  # the very first loss is not finite
    ],
)
def test_a_start_that_fails_leaves_nothing_in_the_way_of_the_next(job, tmp_path, change, error):
    std = change.pop("std", None)
    wrong = dataclasses.replace(job, **change)
    if std:
        wrong = dataclasses.replace(job, data=dataclasses.replace(job.data, std=std))
    with pytest.raises(error):
        run_job(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(Stopped):
        run_job(job, tmp_path / "run", on_step=stop_after(1))
    assert read_job(tmp_path / "run") == job


def test_settings_without_a_step_are_in_nobodys_way(job, tmp_path, caplog):
    """What a former version left of a start that failed."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(Stopped):
        run_job(job, tmp_path / "run", resume=True, on_step=stop_after(1))
    assert "nothing is left of the training" in caplog.text
    assert read_job(tmp_path / "run") == job


def test_the_metrics_of_a_run_without_a_checkpoint_are_kept_and_the_log_says_so(begun, job, caplog):
    first = (begun / "metrics.jsonl").read_text()
    assert first.count("\n") == 3
    run_job(job, begun, resume=True)
    assert (begun / "metrics.jsonl.1").read_text() == first
    lines = (begun / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[:3] == first.splitlines()
    assert "there is no checkpoint in" in caplog.text
    assert "is now in metrics.jsonl.1" in caplog.text


def test_slow_steps_leave_checkpoints_by_the_clock(job, tmp_path):
    often = dataclasses.replace(job, execution=dataclasses.replace(EXECUTION, checkpoint_minutes=1e-9))
    with pytest.raises(Stopped):
        run_job(often, tmp_path / "run", on_step=stop_after(3))
    found = [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    assert found == ["step-000000001.pt", "step-000000002.pt", "step-000000003.pt"]
    assert Execution().checkpoint_minutes == 10
    with pytest.raises(ValueError, match="checkpoint_minutes is above 0, not 0"):
        Execution(checkpoint_minutes=0)


def test_a_run_goes_on_elsewhere_and_executed_otherwise(job, begun, images, tmp_path, caplog):
    uninterrupted = run_job(job, tmp_path / "whole")
    moved, run = images.rename(tmp_path / "moved"), begun.rename(tmp_path / "other")
    with pytest.raises(ValueError, match=rf"no images at root '{images}': say with --root where they lie now"):
        run_job(job, run, resume=True)
    anew = dataclasses.replace(
        job,
        data=dataclasses.replace(job.data, root=str(moved)),
        execution=Execution("cpu", workers=1, eval_epochs=0, log_steps=2, eval_images=3, keep_checkpoints=1),
    )
    run_job(anew, run, resume=True)
    weights = "supernet.safetensors"
    assert (run / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    assert load_run(run).job == anew  # it is remembered
    with pytest.raises(ValueError, match=r"no images at root .*: say with --root"):
        load_run(tmp_path / "whole")
    found = load_run(tmp_path / "whole", root=str(moved))
    assert found.job.data.root == str(moved)
    assert found.data.classes == uninterrupted.data.classes
    for wrong, message in (
        ({"train": dataclasses.replace(TRAIN, lr=0.3)}, r"with these: train\.lr=0\.1"),
        ({"data": dataclasses.replace(anew.data, hflip=0.1)}, r"with these: data\.hflip=0\.5"),
    ):
        with pytest.raises(ValueError, match=message):
            run_job(dataclasses.replace(anew, **wrong), run, resume=True)


def test_other_images_of_the_same_number_are_refused(job, begun, images):
    file = images / "train" / "cat" / "3.png"
    file.rename(file.with_name("33.png"))
    with pytest.raises(ValueError, match="images have other names, though they are as many"):
        run_job(job, begun, resume=True)
    # a former version did not note the names
    config = json.loads((begun / "config.json").read_text())
    del config["files"], config["streams"]
    (begun / "config.json").write_text(json.dumps(config))
    run_job(job, begun, resume=True)


def test_a_relative_root_is_found_from_everywhere(job, images, tmp_path, monkeypatch):
    monkeypatch.chdir(images.parent)
    relative = dataclasses.replace(job, data=dataclasses.replace(job.data, root="images"))
    run_job(relative, Path("run"))
    monkeypatch.chdir("/")
    assert load_run(tmp_path / "run").job.data.root == str(images)


def test_a_finished_run_without_checkpoints_is_not_trained_again(job, tmp_path):
    run_job(job, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    weights = (tmp_path / "run" / "supernet.safetensors").read_bytes()
    run_job(job, tmp_path / "run", resume=True, on_step=stop_after(1))
    assert (tmp_path / "run" / "supernet.safetensors").read_bytes() == weights


def test_checkpoints_of_a_training_that_begins_anew_are_not_mixed_with_the_former_ones(job, tmp_path, caplog):
    job = dataclasses.replace(job, execution=dataclasses.replace(EXECUTION, checkpoint_steps=1))
    with pytest.raises(Stopped):
        run_job(job, tmp_path, on_step=stop_after(3))
    (tmp_path / "config.json").unlink()
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(Stopped):
        run_job(job, tmp_path, on_step=stop_after(1))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000001.pt"]
    assert len(list((tmp_path / "checkpoints.1").iterdir())) == 3


def test_a_single_model_obeys_the_same_rules(images, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    options = json.dumps({"name": "test_resnet", "input_size": 32})
    data = DataConfig("folder", str(images), holdout=0.34)
    settings = {f.name: getattr(TRAIN, f.name) for f in dataclasses.fields(ModelJob().train)}
    job = ModelJob("timm", options, data=data, train=type(ModelJob().train)(**settings), execution=EXECUTION)
    wrong = dataclasses.replace(job, execution=Execution("cuda:99", workers=0))
    with pytest.raises(ValueError, match="cuda:99"):
        run_model_job(wrong, tmp_path / "model")
    assert read_model_job(tmp_path / "model") is None
    with pytest.raises(Stopped):
        run_model_job(job, tmp_path / "model", on_step=stop_after(2))
    moved = images.rename(tmp_path / "moved")
    anew = dataclasses.replace(job, data=dataclasses.replace(data, root=str(moved)))
    run_model_job(anew, tmp_path / "model", resume=True)
    assert read_model_job(tmp_path / "model") == anew
    assert (tmp_path / "model" / "metrics.jsonl.1").exists()


def test_what_may_be_said_anew_are_settings_that_there_are():
    job = dataclasses.asdict(Job())
    for path in LOCATION:
        part, name = path.split(".")
        assert name in job[part], path
    changed = json.loads(json.dumps(job))
    changed["train"]["epochs"] = 7
    changed["execution"] |= {"device": "cuda", "amp": "bf16"}
    changed["data"]["root"] = "elsewhere"
    assert differences(json.loads(json.dumps(job)), changed) == "train.epochs=30"


@pytest.mark.parametrize(
    ("options", "said", "expected"),
    [
        ({"name": "test_vit", "pretrained": "weights.safetensors"}, {}, ((0.5,) * 3, (0.5,) * 3)),
        ({"name": "test_vit", "pretrained": True}, {"mean": (0.1,) * 3}, ((0.1,) * 3, (0.5,) * 3)),
        ({"name": "test_vit"}, {}, (None, None)),
        ({"name": "resnet18", "pretrained": True}, {}, (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)),
    ],
)
@pytest.mark.parametrize("space", ["timm", "from_timm"])
def test_images_are_normalised_as_the_pretrained_model_wants_them(space, options, said, expected):
    data = data_of(Job(space, json.dumps(options), DataConfig(**said)))
    assert (data.mean, data.std) == expected
    assert data_of(Job(data=DataConfig())).normalised.mean == IMAGENET_DEFAULT_MEAN


def test_a_pretrained_model_that_the_space_names_by_default_says_how_as_well():
    data = data_of(Job("vit", json.dumps({"pretrained": "weights.safetensors"})))
    assert (data.mean, data.std) == ((0.5,) * 3, (0.5,) * 3)


def test_a_run_keeps_how_its_images_are_normalised(tmp_path):
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(timm.create_model("test_vit", num_classes=10).state_dict(), weights)
    options = {"name": "test_vit", "pretrained": str(weights)}
    data = DataConfig(holdout=0.97)
    train = LoopConfig(epochs=1, batch_size=40, warmup_epochs=0, max_steps=1)
    execution = Execution("cpu", workers=0, eval_epochs=0)
    job = ModelJob("timm", json.dumps(options), start="pretrained", data=data, train=train, execution=execution)
    trained = run_model_job(job, tmp_path / "run")
    assert trained.config.mean == (0.5,) * 3
    assert read_config(tmp_path / "run")["job"]["data"]["mean"] == [0.5] * 3
    assert run_model_job(job, tmp_path / "run", resume=True).config.mean == (0.5,) * 3
