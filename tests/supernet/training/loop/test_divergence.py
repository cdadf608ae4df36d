import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from distill.objective import Objective
from supernet.training import distributed
from supernet.training.cohort import train_models
from supernet.training.data import DataConfig, load_data
from supernet.training.execution import Execution
from supernet.training.loop import Loop
from supernet.training.loop.config import LoopConfig
from supernet.training.loop.divergence import Divergence, TrainingError, Watch, worst

DATA = DataConfig(holdout=0.97, hflip=0.0, color_jitter=0.0)  # 43 images to train on, 5 batches
CONFIG = LoopConfig(epochs=6, batch_size=8, warmup_epochs=0)
EXECUTION = Execution(eval_epochs=0, log_steps=1)


def steps_until_stopped(losses, uninformed=1.0):
    watch = Divergence(uninformed)
    for step, loss in enumerate(losses):
        try:
            watch.update(step, loss, "it")
        except TrainingError:
            return step + 1
    return None


@pytest.mark.parametrize(("loss", "steps"), [(1e15, 6), (1e5, 6), (100.0, 21), (20.0, 67), (10.0, None)])
def test_how_long_a_loss_may_be_how_high(loss, steps):
    """min(log10(loss / 10), 4) a step, and more than 20 stop."""
    assert steps_until_stopped([loss] * 1000 if steps is None else [1.0, *[loss] * steps]) == (steps and steps + 1)


def test_the_first_loss_counts_where_it_is_higher():
    assert steps_until_stopped([1e6] * 1000) is None
    assert steps_until_stopped([1e6, *[1e11] * 6]) == 7


def test_spikes_that_go_away_are_forgiven():
    assert steps_until_stopped([1.0, *([1e9] * 4 + [0.5] * 16) * 50]) is None


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_noise_stops_nothing(classes):
    """A loss about that of guessing for 100,000 steps, with a standard deviation of a factor of e; and one that falls
    to nothing."""
    noise = np.exp(np.random.default_rng(0).normal(size=100_000))
    chance = math.log(classes)
    assert steps_until_stopped(chance * noise, chance) is None
    assert steps_until_stopped(chance * noise * np.geomspace(1, 1e-9, len(noise)), chance) is None


def test_what_is_watched_goes_on_after_a_resume():
    watch = Divergence(1.0)
    for step in range(5):
        watch.update(step, 1e9 if step else 1.0, "it")
    resumed = Divergence(1.0)
    resumed.load_state_dict(watch.state_dict())
    resumed.update(5, 1e9, "it")
    with pytest.raises(TrainingError, match=r"has diverged: the loss is 1e\+09 in step 7 for it, .* about 1; lower lr"):
        resumed.update(6, 1e9, "it")


def test_a_training_does_not_end_with_a_loss_far_above_guessing():
    watch = Divergence(1.0)
    watch.update(0, 9.0, "it")
    watch.end(0, "it")
    watch.update(1, 100.0, "it")
    with pytest.raises(TrainingError, match="in step 2"):
        watch.end(1, "it")


@pytest.mark.parametrize("late", [False, True])
def test_a_watch_looks_at_once_or_when_it_is_told_to(late):
    def note(step, loss=1.0, norm=1.0, may_overflow=False, is_last=False):
        watch.note(step, torch.tensor([0.5, loss]), torch.tensor(norm), ["a", "b"], may_overflow, is_last)

    for wrong, message in (
        ({"loss": math.nan}, "the loss is nan in step 2 for b; lower lr"),
        ({"norm": math.inf}, r"the gradient's norm is inf in step 2, for one of \['a', 'b'\]; lower lr"),
    ):
        watch = Watch([Divergence(1.0)], late)
        note(0)
        watch.look()
        watch.look()  # nothing new
        if late:
            note(1, **wrong)
        with pytest.raises(TrainingError, match=message):
            watch.look() if late else note(1, **wrong)
        note(1, may_overflow=True, norm=math.inf)
        watch.look()
        with pytest.raises(TrainingError, match=r"in step 3 for b"):
            note(2, loss=100.0, is_last=True)  # the last is looked at in any case


def test_a_watch_that_was_asked_whether_all_is_fine_raises_when_it_looks():
    watch = Watch([Divergence(1.0)], late=True)
    watch.note(0, torch.ones(1), torch.tensor(1.0), ["a"], False, False)
    assert watch.is_fine()
    watch.note(1, torch.tensor([math.nan]), torch.tensor(1.0), ["a"], False, False)
    assert not watch.is_fine()
    assert not watch.is_fine()
    with pytest.raises(TrainingError, match="the loss is nan in step 2 for a"):
        watch.look()


def test_networks_that_train_apart_are_watched_apart():
    """One that begins high does not hide another that rises."""

    def note(watch, step, losses):
        watch.note(step, torch.tensor(losses), torch.tensor(1.0), ["a", "b"], False, False)

    watch = Watch([Divergence(1.0), Divergence(1.0)], late=False)
    note(watch, 0, [200.0, 1.0])
    for step in range(1, 5):
        note(watch, step, [0.5, 1500.0])
    again = Watch([Divergence(1.0), Divergence(1.0)], late=False)  # from a checkpoint
    again.load_state_dict(watch.state_dict())
    for step in range(5, 10):
        note(again, step, [0.5, 1500.0])
    with pytest.raises(TrainingError, match=r"has diverged: the loss is 1\.5e\+03 in step 11 for b"):
        note(again, 10, [0.5, 1500.0])


def test_the_worst_of_several_losses_is_named():
    assert worst([1.0, 3.0, 2.0], ["a", "b", "c"]) == (3.0, "b")
    assert worst([1.0, 3.0, math.nan], ["a", "b", "c"])[1] == "c"
    with pytest.raises(TrainingError, match="the loss is inf in step 3 for c; lower lr"):
        Divergence(1.0).update(2, math.inf, "c")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


def diverged(rank, directory, monkeypatch, **execution):
    """The loop of the process `rank`, as on a GPU, whose first update has had a loss that is not finite; and the steps
    that it has reported."""
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr("supernet.training.loop.loop.computes_ahead", lambda device: True)
    steps = []
    loop = Loop(
        network(), load_data(DATA), CONFIG, directory, lambda net: {}, Execution(eval_epochs=0, **execution),
        on_step=steps.append,
    )  # fmt: skip
    sum(parameter.sum() for parameter in loop.net.parameters()).backward()
    loop.update(0, torch.tensor([math.nan]), ["a"])
    return loop, steps


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("steps", [{"log_steps": 1}, {"log_steps": 100, "checkpoint_steps": 1}])
def test_all_processes_end_before_a_diverged_step_is_noted_or_kept(rank, steps, tmp_path, monkeypatch):
    loop, reported = diverged(rank, tmp_path, monkeypatch, **steps)
    with pytest.raises(TrainingError, match="the loss is nan in step 1 for a"):
        loop.finish(0, {"losses": torch.ones(1)})
    assert not reported


@pytest.mark.parametrize("rank", [0, 1])
def test_a_checkpoint_that_is_due_by_time_ends_no_process_by_itself(rank, tmp_path, monkeypatch):
    loop, reported = diverged(rank, tmp_path, monkeypatch, log_steps=100, checkpoint_minutes=1e-9)
    loop.finish(0, {"losses": torch.ones(1)})
    assert len(reported) == 1
    assert not (tmp_path / "checkpoints").exists()
    with pytest.raises(TrainingError, match="the loss is nan in step 1 for a"):
        loop.update(1, torch.ones(1), ["a"])


@pytest.mark.parametrize(
    ("change", "objective", "amp"),
    [
        ({"lr": 1e4}, Objective(), "none"),
        ({"lr": 1e4, "clip": 1.0}, Objective(), "none"),
        ({"lr": 1e5, "label_smoothing": 0.3}, Objective(), "bf16"),
        ({"lr": 1e6}, Objective(labels=0.0, kl=1.0), "none"),
    ],
)
def test_a_training_that_blows_up_stops_early(tmp_path, change, objective, amp):
    done = []
    teacher = network().eval() if objective.needs_teacher else None
    with pytest.raises(
        TrainingError, match=r"in step \d+ for Sequential.*; lower lr, lengthen warmup_epochs or set clip"
    ):
        train_models(
            [network()], [16], load_data(DATA), dataclasses.replace(CONFIG, **change), tmp_path, objective, teacher,
            execution=dataclasses.replace(EXECUTION, amp=amp), on_step=lambda result: done.append(result.step),
        )  # fmt: skip
    assert 1 <= len(done) < 25  # of 30


@pytest.mark.parametrize(
    ("change", "amp"),
    [({}, "none"), ({"lr": 3.0}, "none"), ({"label_smoothing": 0.5}, "none"), ({"warmup_epochs": 1}, "bf16")],
)
def test_ordinary_trainings_go_on(tmp_path, change, amp):
    execution = dataclasses.replace(EXECUTION, amp=amp)
    config = dataclasses.replace(CONFIG, **change)
    train_models([network()], [16], load_data(DATA), config, tmp_path, execution=execution)


def test_an_accuracy_of_guessing_is_told(tmp_path, caplog):
    frozen = dataclasses.replace(CONFIG, epochs=1, lr=1e-30)
    execution = Execution(eval_epochs=1, eval_images=50, log_steps=1)
    train_models([network()], [16], load_data(DATA), frozen, tmp_path, execution=execution)
    assert "the accuracy on 50 held-out images is" in caplog.text
    assert "where guessing gets 10.0 %" in caplog.text
