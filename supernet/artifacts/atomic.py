"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Give a temporary file beside `path` to write to; on success it is flushed to disk and renamed to `path`.

    If the body raises, `path` is as it was and the temporary file is gone; an OSError that says so if that is because
    the disk is full. Readers see the former file or the whole
    new one, even after a crash. Folders on the way are made.

    >>> with write_atomically("run/metrics.json") as temporary:
    ...     temporary.write_text("{}")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise OSError(f"{path} cannot be written: {full_disk(path.parent)}") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself
    finally:
        os.close(directory)


def full_disk(folder: Path) -> str:
    """What is said where a file cannot be written to `folder` for want of space."""
    free = shutil.disk_usage(folder).free
    return f"the disk is full, or a quota is used up ({free / 2**20:.1f} MiB are free): make room and start it again"


def write_json(path: str | Path, content: Any, indent: int | None = 2) -> None:
    """Write `content` as JSON to `path`, as `write_atomically` does."""
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n")


def write_files(files: Mapping[str, str], folder: Path) -> None:
    """Write the texts `files` into `folder`, each under its name and whole."""
    for name, content in files.items():
        with write_atomically(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")


@contextlib.contextmanager
def write_folder(path: Path, last: str) -> Iterator[Path]:
    """Give a temporary folder beside `path` to write files to; on success they move into `path`, the one called `last`
    at the end, so that a folder with it is complete. If the body raises, `path` is as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as name:
        yield Path(name)
        path.mkdir(exist_ok=True)
        for file in sorted(Path(name).iterdir(), key=lambda file: file.name == last):
            file.replace(path / file.name)


def set_aside(path: Path) -> Path | None:
    """Rename a file or folder to the first name of `path`.1, `path`.2, ... that is free; that, or None if there is
    nothing at `path`."""
    if not path.exists():
        return None
    for number in itertools.count(1):
        aside = path.with_name(f"{path.name}.{number}")
        if not aside.exists():
            return path.rename(aside)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
