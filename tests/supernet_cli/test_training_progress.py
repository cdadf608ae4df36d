import os
import signal

import pytest

from supernet.training.loop import StepResult
from supernet_cli import training_progress
from supernet_cli.training_progress import SECONDS, Lines, Progress


def step(number, losses=None, metrics=None):
    return StepResult(number, 100, losses, 0.1, False, number / 10, 64, metrics)


def test_lines_come_now_and_then_with_what_there_is_to_say(capsys):
    now = [0.0]
    lines = Lines(Progress(lambda: now[0]), "Training", lambda: now[0])
    lines(step(1, [2.5]))
    for number in range(2, 100):
        now[0] += 1.0
        lines(step(number, [2.0, 1.5], {"accuracy": {"largest": 0.75, "smallest": 0.5}} if number == 40 else None))
    now[0] += 1.0
    lines(step(100, [1.0]))
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "Training: step 1 of 100, epoch 0.10, loss 2.5",
        "Training: step 31 of 100, epoch 3.10, loss 2 1.5, 64 images/s, 0:01:09 left",
        "Training: step 61 of 100, epoch 6.10, loss 2 1.5, accuracy of largest 0.75, 64 images/s, 0:00:39 left",
        "Training: step 91 of 100, epoch 9.10, loss 2 1.5, accuracy of largest 0.75, 64 images/s, 0:00:09 left",
        "Training: step 100 of 100, epoch 10.00, loss 1, accuracy of largest 0.75, 64 images/s",
    ]
    assert SECONDS == 30


def test_a_command_says_how_to_go_on_after_a_signal(command, tmp_path, monkeypatch):
    short = ["--epochs", "2", "--warmup-epochs", "0", "--holdout", "0.97", "--batch-size", "8", "--eval-epochs", "0"]
    short += ["--workers", "0", "--output", tmp_path / "run"]

    def send(result):
        if result.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(training_progress, "Lines", lambda *_: send)
        result = command("train", *short)
    assert result.returncode == 128 + signal.SIGTERM
    assert result.stderr.splitlines()[-1] == (
        "error: SIGTERM has ended the training after step 2 of 10, of which there is a checkpoint: "
        "--resume goes on from there"
    )
    result = command("train", *short, "--resume")
    assert result.returncode == 0
    assert "Training: step 10 of 10, epoch 2.00, loss" in result.stdout


@pytest.mark.parametrize("is_terminal", [True, False])
def test_nothing_is_shown_where_another_process_does(capsys, monkeypatch, is_terminal):
    monkeypatch.setattr(training_progress.console, "_force_terminal", is_terminal)
    with training_progress.training_progress(disable=True) as show:
        show(step(1, [1.0]))
    assert capsys.readouterr().out == ""
