import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from supernet.artifacts.atomic import write_atomically
from supernet.training.loop.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with write_atomically(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    with contextlib.suppress(KeyError), write_atomically(path) as temporary:
        temporary.write_text("sec")
        raise KeyError
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


SAVE_BEYOND_THE_LIMIT = """
import resource, signal, sys
from pathlib import Path
import torch
from supernet.training.loop.checkpoint import save_checkpoint

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint(Path(sys.argv[1]), 2, {"weights": torch.zeros(10**6)}, keep=1)
except OSError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_former_checkpoint(tmp_path):
    save_checkpoint(tmp_path, 1, {"weights": torch.ones(3)}, keep=1)
    command = [sys.executable, "-c", SAVE_BEYOND_THE_LIMIT, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert f"checkpoint {tmp_path / 'step-000000002.pt'} cannot be written" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001.pt"]
    assert load_checkpoint(tmp_path)["weights"].tolist() == [1, 1, 1]


def test_a_full_disk_is_called_that(tmp_path, monkeypatch):
    save = torch.save
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(torch, "save", lambda state, file: save(state, full))
        with pytest.raises(OSError, match=r"step-000000002.pt cannot be written: the disk is full.*make room"):
            save_checkpoint(tmp_path, 2, {"weights": torch.ones(3)}, keep=1)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".step-000000001.pt.abc").write_bytes(b"half")
    save_checkpoint(tmp_path, 2, {"weights": torch.ones(3)}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000002.pt"]


def test_the_newest_checkpoint_is_loaded_and_old_ones_are_deleted(tmp_path):
    assert load_checkpoint(tmp_path) is None
    for step in (5, 900, 1000, 12000):
        save_checkpoint(tmp_path, step, {"value": step}, keep=2)
    assert load_checkpoint(tmp_path)["value"] == 12000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001000.pt", "step-000012000.pt"]


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_damaged_and_foreign_files_are_named(tmp_path, damage):
    path = save_checkpoint(tmp_path, 1, {"weights": torch.ones(1000)}, keep=1)
    path.write_bytes(path.read_bytes()[:2000] if damage is None else damage)
    with pytest.raises(ValueError, match=r"step-000000001\.pt cannot be read"):
        read_checkpoint(path)
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read \(step-000000001\.pt\)"):
        load_checkpoint(tmp_path)
    torch.save({"weights": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="is no checkpoint of a supernet's training"):
        read_checkpoint(path)


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "step-000000001.pt"
    torch.save({"format": "supernet-checkpoint-1", "weights": Malicious()}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()
