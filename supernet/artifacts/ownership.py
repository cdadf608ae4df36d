"""One owner of what is written to: two processes that go on with one run would mix what they write."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from supernet.training import distributed

logger = logging.getLogger(__name__)

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

_held: dict[Path, list] = {}  # of this process: the open file of a lock, and how often it was taken


@contextlib.contextmanager
def owned(folder: Path, name: str = "", *, wait: bool = False) -> Iterator[None]:
    """Within the context this process alone owns `folder`, or what is called `name` in it; neither need exist.

    The kernel gives it up when the process ends, however it does. A process may own a thing several times over; of
    processes that train together the first one owns for all. If another process has it, ValueError names that one;
    with `wait` this process waits until that has ended. On a file system without locks the log says that nobody looks.
    """
    if distributed.rank():
        yield
        return
    folder = Path(folder)
    made = _make_folders(folder)
    lock = Path(os.path.realpath(folder)) / (f".{name}{LOCK}" if name else LOCK)
    try:
        if lock not in _held:
            _held[lock] = [_locked(lock, folder / name, wait), 0]
    except BaseException:
        _remove(made)
        raise
    _held[lock][1] += 1
    try:
        yield
    finally:
        if lock in _held:  # it is not in a process that was forked meanwhile
            _held[lock][1] -= 1
            if not _held[lock][1]:
                lock.unlink(missing_ok=True)
                os.close(_held.pop(lock)[0])
                _remove(made)


def _locked(lock: Path, path: Path, wait: bool) -> int:
    """A handle of the file `lock`, which is locked."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 200).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise ValueError(
                f"{path} is in use by {owner}: wait until it has ended, end it, or name another output"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(handle)
                raise
            logger.warning(
                "the file system of %s has no locks (%s): see to it that no other process writes there", path, error
            )
            return handle
        if _is_at(handle, lock):
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())
            return handle
        os.close(handle)  # its owner has just removed it


def _is_at(handle: int, lock: Path) -> bool:
    try:
        found = os.stat(lock)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(handle), found)


def _make_folders(folder: Path) -> list[Path]:
    """Make the folder and those on the way to it; the ones that were not there, the innermost first."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove(folders: list[Path]) -> None:
    """Remove those that are empty: a start that failed leaves nothing."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _forget() -> None:
    """In a forked process, such as one that loads images: the lock is the parent's, and ends with it."""
    for handle, _ in _held.values():
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
