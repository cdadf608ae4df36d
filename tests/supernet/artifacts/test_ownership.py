import errno
import fcntl
import os
import signal
import time
from contextlib import contextmanager

import pytest

from supernet.artifacts.ownership import owned


@contextmanager
def another_process(work):
    """A forked process that does `work`, once it says that it is ready; its id."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        try:
            work(lambda: os.write(writing, b"."))
        finally:
            os._exit(1)
    os.close(writing)
    assert os.read(reading, 1) == b"."
    os.close(reading)
    try:
        yield process
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def test_a_second_process_is_refused_by_name_until_the_first_one_dies(tmp_path):
    folder = tmp_path / "runs" / "mine"

    def work(ready):
        with owned(folder), owned(folder, "search.jsonl"):
            ready()
            time.sleep(60)

    with another_process(work) as process:
        with (
            pytest.raises(ValueError, match=rf"{folder} is in use by process {process} on .*: wait until"),
            owned(folder),
        ):
            pass
        with (
            pytest.raises(ValueError, match=rf"{folder}/search.jsonl is in use by process {process}"),
            owned(folder, "search.jsonl"),
        ):
            pass
        with owned(folder, "other.jsonl"):
            pass
    with owned(folder), owned(folder, "search.jsonl"):  # it was killed
        pass
    assert not list(folder.iterdir())


def test_a_lock_does_not_outlive_its_process_in_those_that_it_forked(tmp_path):
    """Such as the workers of a data loader, which live on for some seconds."""

    def work(ready):
        with owned(tmp_path):
            if not os.fork():
                time.sleep(5)
                os._exit(0)
            ready()
            time.sleep(60)

    with another_process(work):
        pass
    with owned(tmp_path):
        pass


def test_a_process_may_own_a_folder_several_times_and_leaves_nothing(tmp_path):
    folder = tmp_path / "a" / "b"
    with owned(folder):
        with owned(tmp_path / "a" / ".." / "a" / "b"):
            assert [path.name for path in folder.iterdir()] == [".lock"]
        assert (folder / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    assert not (tmp_path / "a").exists()
    with owned(folder):
        (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_where_there_are_no_locks_the_log_says_so(tmp_path, monkeypatch, caplog):
    def flock(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with owned(tmp_path):
        pass
    assert f"the file system of {tmp_path} has no locks" in caplog.text


def test_who_waits_has_a_folder_when_its_process_has_ended(tmp_path):
    def work(is_ready):
        with owned(tmp_path):
            is_ready()
            time.sleep(0.3)
            (tmp_path / "done").touch()

    with another_process(work):
        with pytest.raises(ValueError, match="in use by process"), owned(tmp_path):
            pass
        with owned(tmp_path, wait=True):
            assert (tmp_path / "done").exists()
