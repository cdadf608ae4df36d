"""What commands say to those who resume what there is not, or what another process is at."""

import os
import signal
import time

import pytest

from supernet.artifacts.ownership import owned

SHORT = ["--epochs", "3", "--warmup-epochs", "0", "--holdout", "0.97", "--batch-size", "8", "--eval-epochs", "0"]


@pytest.mark.parametrize(
    ("name", "arguments", "folder"),
    [
        ("train", [], "out"),
        ("train-standalone", ["--model", "resnet18"], "out/training"),
        ("train-netaug", ["--model", "resnet18"], "out/training"),
        ("finetune", ["--subnet", "nowhere"], "out/training"),
        ("search", ["--run", "nowhere"], "out"),
    ],
)
def test_what_is_not_there_is_not_resumed(command, tmp_path, name, arguments, folder):
    result = command(name, *arguments, "--resume", "--output", tmp_path / "out")
    assert result.returncode == 2
    assert f"to resume in {tmp_path / folder}: start without --resume, or name another folder" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_process_writes_to_is_refused(command, tmp_path):
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        try:
            with owned(tmp_path / "run"), owned(tmp_path / "model" / "training"):
                os.write(writing, b".")
                time.sleep(600)
        finally:
            os._exit(1)
    try:
        os.read(reading, 1)
        for name, arguments, folder in (
            ("train", ["--output", tmp_path / "run"], "run"),
            ("train-standalone", ["--output", tmp_path / "model"], "model/training"),
            ("train-netaug", ["--output", tmp_path / "model"], "model/training"),
        ):
            result = command(name, *SHORT, *arguments)
            assert result.returncode == 2
            assert f"{tmp_path / folder} is in use by process {process} on " in result.stderr
            assert result.stderr.count("\n") == 1
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(reading)
        os.close(writing)


def test_a_training_that_blows_up_ends_in_one_line(command, tmp_path):
    result = command("train", *SHORT, "--lr", "1e4", "--method", "spos", "--output", tmp_path / "run")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "lower lr, lengthen warmup_epochs or set clip" in result.stderr
    assert result.stderr.count("\n") == 1
    assert "The supernet is in" not in result.stdout
    assert not (tmp_path / "run" / "supernet.safetensors").exists()
