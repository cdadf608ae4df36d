"""Checkpoints of a training run: atomic, complete, the last few kept."""

from __future__ import annotations

import logging
import pickle
import re
import time
import zipfile
from pathlib import Path
from typing import Any

import torch

from supernet.artifacts.atomic import NO_SPACE, write_atomically
from supernet.artifacts.formats import CHECKPOINT, UnknownFormat
from supernet.errors import first_line

logger = logging.getLogger(__name__)


def save_checkpoint(directory: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `state` as the checkpoint after `step` steps, then delete all but the newest `keep`.

    `state` holds tensors and plain values only, so that it can be read without running code from it.
    OSError, and the former checkpoints as they were, if it cannot be written.
    """
    path = directory / f"step-{step:09d}.pt"
    # torch's own writer of files says nothing of why it cannot write
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save({"format": CHECKPOINT.label, "step": step, **state}, file)
        except RuntimeError as error:  # of an archive whose writing ended too early
            cause = error.__context__ or error
            if isinstance(cause, OSError) and cause.errno in NO_SPACE:
                raise cause from None
            raise OSError(f"checkpoint {path} cannot be written: {first_line(cause)}") from error
    for unfinished in directory.glob(".step-*.pt.*"):  # of a process that was killed
        unfinished.unlink()
    for _, old in _checkpoints(directory)[:-keep]:
        old.unlink()
    return path


class Interval:
    """Whether it is time again, `minutes` after the start or the last `restart`."""

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self.restart()

    def restart(self) -> None:
        self._begin = time.monotonic()

    @property
    def due(self) -> bool:
        return time.monotonic() - self._begin >= self._seconds


def has_checkpoints(directory: Path) -> bool:
    """Whether there is any checkpoint in `directory`."""
    return bool(_checkpoints(directory))


def load_checkpoint(directory: Path) -> dict[str, Any] | None:
    """The newest readable checkpoint, on the CPU, or None if there is none yet.

    A damaged checkpoint is named in the log, and the checkpoint before it is used. ValueError, naming the files, if
    there are checkpoints and none can be read.
    """
    damaged = []
    for _, path in reversed(_checkpoints(directory)):
        try:
            return read_checkpoint(path)
        except UnknownFormat:
            raise
        except ValueError as error:
            logger.warning("%s; going back to the checkpoint before it", error)
            damaged.append(path.name)
    if damaged:
        raise ValueError(f"no checkpoint in {directory} can be read ({', '.join(damaged)}); start a new run")
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint file, on the CPU; ValueError if it is damaged or no checkpoint of ours."""
    try:
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:  # torch.load does not look at the checksums
                raise ValueError(f"checkpoint {path} is damaged in {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, pickle.UnpicklingError, KeyError) as error:
        raise ValueError(f"checkpoint {path} cannot be read: {first_line(error)}") from error
    if not isinstance(state, dict) or not str(state.get("format")).startswith(CHECKPOINT.prefix):
        raise ValueError(f"{path} is no checkpoint of a supernet's training")
    return CHECKPOINT.upgraded(state, state["format"], path)


def _checkpoints(directory: Path) -> list[tuple[int, Path]]:
    """Steps and paths, oldest first."""
    found = ((re.fullmatch(r"step-(\d+)\.pt", path.name), path) for path in directory.glob("step-*.pt"))
    return sorted((int(match[1]), path) for match, path in found if match)
