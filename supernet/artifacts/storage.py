"""Storage that outlives a machine: a folder that many see, or the address of an object store (s3://, gs://, ...).

An object store writes an object whole or not at all, and has no appending and no renaming, so that neither a file that
grows nor `write_atomically` can be had there.
"""

from __future__ import annotations

import os
import posixpath
import uuid
from collections.abc import Sequence
from urllib.parse import urlsplit, urlunsplit

LINES = 64  # of an object, at most


def is_address(storage: str) -> bool:
    return "://" in storage


def beneath(storage: str, *names: str) -> str:
    """The folder or the address of what has these `names` in `storage`. An address keeps what follows its "?", which
    says how to reach the store."""
    if not is_address(storage):
        return posixpath.join(storage, *names)
    parts = urlsplit(storage)
    return urlunsplit(parts._replace(path=posixpath.join(parts.path or "/", *names)))


def shown(storage: str) -> str:
    """A storage as messages name it: an address without keys and without what says how to reach the store."""
    if not is_address(storage):
        return storage
    parts = urlsplit(storage)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class StoredLines:
    """Lines of bytes at `address`, a folder in a storage, that become more by appending, whoever appends.

    What is appended goes into an object that is written anew as a whole, until it holds `LINES` lines and the next one
    begins: n lines one by one take n writes and n / `LINES` reads. A writer, each `StoredLines`, has objects of its
    own, so that one that is still at work, or two at once, overwrite nothing. An object is written to two places in
    turn: where a write is not whole or not at all, as in HDFS, what was there before it is.

    An address is one that Arrow knows (`pyarrow.fs.FileSystem.from_uri`), as those are that Ray writes to; ValueError
    for others. OSError if it cannot be reached.
    """

    def __init__(self, address: str) -> None:
        from pyarrow import fs

        self.address = address
        self._files, self._place = fs.FileSystem.from_uri(address if is_address(address) else os.path.abspath(address))
        self._writer = f"{len(self._writers()):06}-{uuid.uuid4().hex[:8]}"  # later ones after former ones
        self._newest: list[bytes] = []  # lines of the object that is not full yet
        self._full = 0  # objects
        self._writes = 0

    def read(self) -> list[bytes]:
        """All whole lines, by all writers, equal ones once, each writer's in their order and after those of earlier
        writers."""
        lines: dict[bytes, None] = {}
        for path in self._paths():
            with self._files.open_input_stream(path) as stream:
                text = stream.read()
            lines |= dict.fromkeys(text[: text.rfind(b"\n") + 1].splitlines())
        return list(lines)

    def append(self, lines: Sequence[bytes]) -> None:
        """Returns when they are stored."""
        for start in range(0, len(lines), LINES):
            self._append(lines[start : start + LINES])

    def _append(self, lines: Sequence[bytes]) -> None:
        if not self._writes:
            self._files.create_dir(self._place, recursive=True)
        if len(self._newest) + len(lines) > LINES:
            self._newest = []
            self._full += 1
        self._newest = [*self._newest, *lines]
        self._writes += 1
        name = f"{self._writer}-{self._full:06}-{self._writes % 2}.jsonl"
        with self._files.open_output_stream(f"{self._place}/{name}") as stream:
            stream.write(b"".join(line + b"\n" for line in self._newest))

    def _writers(self) -> set[str]:
        return {posixpath.basename(path).rsplit("-", 2)[0] for path in self._paths()}

    def _paths(self) -> list[str]:
        from pyarrow import fs

        found = self._files.get_file_info(fs.FileSelector(self._place, allow_not_found=True))
        return sorted(info.path for info in found if info.base_name.endswith(".jsonl"))
