"""Training in fp16: the loss is scaled, and a step whose gradients overflow is skipped."""

import dataclasses
import itertools
import json
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from supernet.artifacts.runs import Job, run_job
from supernet.training import distributed
from supernet.training.cohort import train_models
from supernet.training.data import DataConfig, load_data
from supernet.training.data.batch import on
from supernet.training.execution import Execution
from supernet.training.loop.checkpoint import load_checkpoint
from supernet.training.loop.config import LoopConfig
from supernet.training.loop.divergence import TrainingError
from supernet.training.loop.optimizer import clip_gradients
from supernet.training.step import TrainConfig
from supernet.training.train import train
from tests.small import SPACE, small

DATA = DataConfig(holdout=0.97, hflip=0.0, color_jitter=0.0)  # 43 images to train on, 5 batches
CONFIG = LoopConfig(epochs=2, batch_size=8, clip=1.0, seed=3)
EXECUTION = Execution("cpu", "fp16", workers=0, eval_epochs=0, log_steps=1, checkpoint_steps=1, keep_checkpoints=20)
TOO_MUCH = 2.0**22  # a scale by which the gradients of these networks are beyond fp16, until it is halved a few times


@pytest.fixture
def scaled(monkeypatch):
    """Begin with this scale."""

    def begin(scale):
        monkeypatch.setattr(torch.amp, "GradScaler", partial(GRAD_SCALER, init_scale=scale))

    return begin


GRAD_SCALER = torch.amp.GradScaler


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, 10))


def scales(directory):
    """The scale after each step, by the checkpoints."""
    paths = sorted((directory / "checkpoints").iterdir())
    return [torch.load(path, weights_only=True)["scaler"]["scale"] for path in paths]


def test_the_steps_are_those_written_out_with_torchs_scaler(scaled, tmp_path):
    scaled(TOO_MUCH)
    data = load_data(DATA, CONFIG.seed)
    model, reference = network().train(), network().train()
    train_models([model], [16], data, CONFIG, tmp_path, execution=dataclasses.replace(EXECUTION, channels_last=False))

    scaler = torch.amp.GradScaler("cpu")
    groups = [
        {"params": [p for p in reference.parameters() if p.dim() > 1], "weight_decay": CONFIG.weight_decay},
        {"params": [p for p in reference.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    skipped = []
    for line, batch in zip(lines, data.training_batches(16, 8, CONFIG.seed, range(10)), strict=True):
        images, labels = on(torch.device("cpu"), batch)
        for group in optimizer.param_groups:
            group["lr"] = line["lr"]
        with torch.autocast("cpu", torch.float16):
            logits = reference(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=CONFIG.label_smoothing)
        assert line["loss"] == loss.item()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        clip_gradients(reference, CONFIG)
        before, scale = reference[0].weight.clone(), scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped.append(torch.equal(before, reference[0].weight))
        assert skipped[-1] == (scaler.get_scale() < scale)
    assert skipped[0]
    assert not skipped[-1]
    assert scales(tmp_path)[-1] == scaler.get_scale() == TOO_MUCH / 2 ** sum(skipped)
    for name, tensor in reference.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


class Stopped(Exception):
    pass


def test_a_supernet_of_several_paths_and_parts_goes_on_where_it_was_stopped(scaled, tmp_path):
    scaled(TOO_MUCH)
    config = TrainConfig(epochs=2, batch_size=8, random_subnets=1, accumulation=2, ema_decay=0.5, calibration_images=20)
    job = Job(space=SPACE, data=DATA, train=config, execution=EXECUTION)
    family = run_job(job, tmp_path / "whole").family
    found = scales(tmp_path / "whole")
    assert found[0] == TOO_MUCH / 2  # the first step is skipped
    assert len(set(found)) < len(found)  # and others are not
    first = load_checkpoint_of(tmp_path / "whole", 1)
    for name, tensor in family.supernet(config.seed).named_parameters():
        assert torch.equal(first["net"][name], tensor), name
    taken = found.index(found[-1]) + 2

    def stop(result):
        if result.step == 2:  # while the scale falls
            raise Stopped

    with pytest.raises(Stopped):
        run_job(job, tmp_path / "parts", on_step=stop)
    run_job(job, tmp_path / "parts", resume=True)
    for name in ("supernet.safetensors", "metrics.jsonl"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert scales(tmp_path / "parts") == found
    before, after = (load_checkpoint_of(tmp_path / "whole", step) for step in (taken - 1, taken))
    assert not torch.equal(before["net"]["conv_stem.weight"], after["net"]["conv_stem.weight"])


def load_checkpoint_of(directory, step):
    return torch.load(directory / "checkpoints" / f"step-{step:09d}.pt", weights_only=True)


def overflowing(in_process, steps):
    """A network whose gradients overflow in these steps, counted from 0, of a process."""
    model, passes = network(), iter(range(100))

    def break_gradient(gradient):
        return gradient * float("inf") if next(passes) in steps and distributed.rank() == in_process else gradient

    model[0].weight.register_hook(break_gradient)
    return model


def train_in_processes(directory):
    (model,) = train_models([overflowing(1, {1, 3})], [16], load_data(DATA), CONFIG, directory, execution=EXECUTION)
    return {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}


def test_all_processes_skip_what_overflows_in_one(in_two_processes, tmp_path):
    first, second = in_two_processes(train_in_processes, tmp_path)
    for name, array in first.items():
        assert (array == second[name]).all(), name
    assert scales(tmp_path)[:5] == [2.0**16, 2.0**15, 2.0**15, 2.0**14, 2.0**14]
    weights = [load_checkpoint_of(tmp_path, step)["net"]["0.weight"] for step in range(1, 6)]
    assert [torch.equal(a, b) for a, b in itertools.pairwise(weights)] == [True, False, True, False]


def test_the_average_does_not_move_in_a_step_that_is_skipped(tmp_path):
    config = dataclasses.replace(CONFIG, ema_decay=0.5)
    train_models([overflowing(0, {3})], [16], load_data(DATA), config, tmp_path, execution=EXECUTION)
    averages = [load_checkpoint_of(tmp_path, step)["ema"]["module.0.weight"] for step in (3, 4, 5)]
    assert torch.equal(averages[0], averages[1])
    assert not torch.equal(averages[1], averages[2])


def test_gradients_that_are_not_finite_at_any_scale_end_the_training(scaled, tmp_path):
    scaled(4.0)
    model = overflowing(0, set(range(100)))
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(TrainingError, match=r"the gradient's norm is (inf|nan) in step 3, for one of"):
        train_models([model], [16], load_data(DATA), CONFIG, tmp_path, execution=EXECUTION)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before))
    assert scales(tmp_path) == [2.0, 1.0]


def test_a_run_goes_on_in_another_precision(tmp_path):
    """Precision is part of the execution, not of the settings."""
    data, model = load_data(DATA), network()

    def stop(result):
        if result.step == 3:
            raise Stopped

    with pytest.raises(Stopped):
        train_models([model], [16], data, CONFIG, tmp_path, execution=EXECUTION, on_step=stop)
    plain = dataclasses.replace(EXECUTION, amp="none")
    train_models([network()], [16], data, CONFIG, tmp_path, execution=plain, resume=True)
    state = load_checkpoint(tmp_path / "checkpoints")
    assert state["step"] == 10
    assert "scaler" not in state


@pytest.mark.slow
def test_cream_learns_to_match_at_the_scale_of_the_training(tmp_path):
    family = small()
    config = TrainConfig(epochs=1, batch_size=8, method="cream", board_epoch=0, matching_steps=1, seed=3)
    train(family, family.supernet(), load_data(DATA), config, tmp_path, EXECUTION)
    weight = load_checkpoint(tmp_path / "checkpoints")["method"]["weight"]
    assert weight.isfinite().all()
    assert weight.any()
