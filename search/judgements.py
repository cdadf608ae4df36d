"""What races have judged so far, kept beside the history of a search: one that was killed in a race judges no example
twice."""

from __future__ import annotations

import base64
import json
import logging
import zlib
from dataclasses import asdict, dataclass
from typing import BinaryIO

import numpy as np

from search.history import History
from supernet.artifacts.reading import parse_json
from supernet.space import Arch, Value

ENDING = ".judged"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Line:
    arch: dict[str, Value]
    seen: int
    values: str


class Judgements:
    """The values that architectures got for examples, in the order in which races look at these.

    They are in the file of the history's name that ends with `ENDING`: JSON lines, the first that of the history, and
    then one for each architecture and look, with the number of examples it had seen before and the values (float64,
    little-endian, compressed by zlib, in base64). A file of another search, and what follows a damaged line, is
    dropped: it costs nothing but time.
    """

    def __init__(self, history: History) -> None:
        self.path = history.path.with_suffix(ENDING)
        self._history = history
        self._known: dict[tuple[Arch, int], str] = {}  # by how many examples had been seen
        self._whole = self._load()  # bytes of the file that are good
        self._file: BinaryIO | None = None

    def __len__(self) -> int:
        """How many were there when the search was started again."""
        return len(self._known)

    def get(self, arch: Arch, seen: int, look: int) -> np.ndarray | None:
        """The values for the examples from `seen` to `look`, None unless all are known."""
        parts = []
        while seen < look and (arch, seen) in self._known:
            parts.append(_decoded(self._known[arch, seen]))
            seen += len(parts[-1])
        return np.concatenate(parts) if parts and seen == look else None

    def append(self, arch: Arch, seen: int, values: np.ndarray) -> None:
        """Keep the `values` for the examples after the first `seen`; they are in the file when this returns."""
        if self._file is None:
            header = self._history.begin()
            self._file = self.path.open("r+b" if self._whole else "wb")
            self._file.truncate(self._whole)
            self._file.seek(self._whole)
            if not self._whole:
                self._file.write(header + b"\n")
        line = _Line(dict(arch), seen, _encoded(values))
        self._file.write(json.dumps(asdict(line)).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _load(self) -> int:
        if not self.path.exists() or not self._history.path.exists():
            return 0
        header, *lines = self.path.read_bytes().split(b"\n")[:-1] or [b""]  # the last is unfinished, or empty
        if header != self._history.begin():
            return 0
        whole = len(header) + 1
        for number, line in enumerate(lines, start=2):
            try:
                entry = parse_json(line, _Line)
                if not len(_decoded(entry.values)):
                    raise ValueError("there are no values")
                self._known[Arch(entry.arch), entry.seen] = entry.values
            except (ValueError, zlib.error) as error:
                logger.warning(
                    "%s is damaged from line %d on, what follows is judged again: %s", self.path, number, error
                )
                break
            whole += len(line) + 1
        return whole


def _encoded(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.asarray(values, "<f8").tobytes())).decode()


def _decoded(text: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<f8").astype(float)
