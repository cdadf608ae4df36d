"""The record of a search: JSON lines, one header and then one line for every evaluation.

A line is written as soon as its evaluation ends, so that a search that is killed loses nothing it has evaluated. It is
written to a file, and to an object store as well if the machine with the file may be lost.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from supernet.artifacts.atomic import write_atomically
from supernet.artifacts.formats import HISTORY
from supernet.artifacts.ownership import owned
from supernet.artifacts.reading import parse_json, parse_lines, typed
from supernet.artifacts.storage import StoredLines, shown
from supernet.space import Arch, Value


@dataclass(frozen=True)
class Rejection:
    """What is known of an architecture that was judged by a part of the examples, by which it is surely not on the
    front (`search.racing`): estimates of its scores, with their standard errors, and the number of examples.

    Estimates tend to be too low, by about a standard error: it is when they look worst that architectures are rejected.
    """

    scores: Mapping[str, float]
    standard_errors: Mapping[str, float]
    examples: int


@dataclass(frozen=True)
class Evaluation:
    """An evaluated architecture. A failed one has an `error` and no scores, one that was `rejected` on the way has no
    scores either, so that it is in no front and compared with none."""

    arch: Arch
    scores: Mapping[str, float]
    costs: Mapping[str, float]
    generation: int
    error: str | None = None
    rejected: Rejection | None = None

    def to_json(self) -> str:
        fields = asdict(self) | {"arch": dict(self.arch)}
        if self.rejected is None:
            del fields["rejected"]
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """The evaluation that `to_json` wrote as `text`; ValueError if it is none."""
        return cls._of(parse_json(text, dict))

    @classmethod
    def _of(cls, fields: dict[str, Any]) -> Evaluation:
        arch = Arch(typed(dict[str, Value], fields.get("arch"), "arch"))
        return typed(cls, fields | {"arch": arch})


class History:
    """Appends evaluations to the file at `path`; `past` holds the evaluations that the file already had.

    `settings` (JSON) say which search this is. With `resume`, a file of the same settings is continued, but for those
    in `said_anew`, such as "dna.amp"; a last line that a killed process left unfinished is dropped. The file is made
    with the first evaluation, or when a search without any ends in order; a search that fails before leaves no file.
    Until the history is closed no other process can write to the file.

    With `storage`, a folder or the address of one in an object store (s3://, ...), every line is there, too, before
    `append` returns. `past` then holds what either of the two had, and both have it from then on. Nobody looks whether
    another process writes to the same storage, where none overwrites what others wrote.

    ValueError if the file or something in the storage exists and `resume` is false, if it is of another search (named
    setting by setting), is damaged, or in use. OSError if the storage cannot be written to.
    """

    def __init__(
        self,
        path: str | Path,
        settings: Mapping[str, object],
        resume: bool = False,
        said_anew: Collection[str] = (),
        storage: str | None = None,
    ) -> None:
        self.path = Path(path)
        self._stored = StoredLines(storage) if storage else None
        self.past: dict[Arch, Evaluation] = {}
        self._forgotten: dict[Arch, Evaluation] = {}
        self._header = json.dumps({"format": HISTORY.label} | dict(settings))
        self._file: BinaryIO | None = None
        with ExitStack() as stack:
            stack.enter_context(owned(self.path.parent, self.path.name))
            stored = self._stored.read() if self._stored else []
            if self.path.exists() or stored:
                if not resume:
                    place = self.path if self.path.exists() else shown(storage)
                    raise ValueError(f"{place} exists already: resume that search, or choose another place")
                self._load(stored, json.loads(json.dumps(settings)), said_anew)
            self._ownership = stack.pop_all()

    def append(self, evaluation: Evaluation) -> None:
        self.past[evaluation.arch] = evaluation
        if self._forgotten.pop(evaluation.arch, None) != evaluation:
            self._open()
            self._write(evaluation.to_json())

    def forget_last_generation(self) -> None:
        """Takes what was evaluated last, one by one of a generation or all of it, out of `past`. Evaluations that are
        appended again are in the file already."""
        last = max((evaluation.generation for evaluation in self.past.values()), default=0)
        again = {arch: own for arch, own in self.past.items() if own.generation == last and own.error is None}
        self._forgotten |= again
        self.past = {arch: evaluation for arch, evaluation in self.past.items() if arch not in again}

    def begin(self) -> bytes:
        """Makes the file, unless it is there, and returns its first line, which says which search this is."""
        self._open()
        with self.path.open("rb") as file:
            return file.readline().rstrip(b"\n")

    def close(self) -> None:
        """Write all to the disk and let others write to the file."""
        with self._ownership:
            if self._file is None:
                self._open()
            if not self._file.closed:
                os.fsync(self._file.fileno())
                self._file.close()

    def __enter__(self) -> History:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._file is None:
            self._ownership.close()
        else:
            self.close()

    def _load(self, stored: list[bytes], settings: dict[str, object], said_anew: Collection[str]) -> None:
        text = self.path.read_bytes() if self.path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        written = whole.splitlines()
        for place, lines in ((self.path, written), (self._stored and shown(self._stored.address), stored)):
            if lines:
                found, evaluations = _parse(place, lines)
                if different := _difference(found, settings, said_anew):
                    raise ValueError(f"{place} is the history of another search: {different}")
                self.past |= {evaluation.arch: evaluation for evaluation in evaluations}
        lines = [*(written or stored)[:1], *dict.fromkeys([*written[1:], *stored[1:]])]
        if stored and lines != written:
            with write_atomically(self.path) as temporary:
                temporary.write_bytes(_text(lines))
        elif self.path.exists():
            with self.path.open("ab") as file:
                file.truncate(len(whole))
        if self._stored:
            there = set(stored)
            self._stored.append([line for line in lines[1 if stored else 0 :] if line not in there])

    def _open(self) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
            if not self._file.tell():
                self._write(self._header)

    def _write(self, line: str) -> None:
        self._file.write(_text([line.encode()]))
        self._file.flush()
        if self._stored:
            self._stored.append([line.encode()])


def _text(lines: Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def write_history(path: str | Path, settings: Mapping[str, object], evaluations: Iterable[Evaluation]) -> None:
    """Write a finished search's history as a whole, as `read_history` reads it."""
    lines = [json.dumps({"format": HISTORY.label, **settings}), *(evaluation.to_json() for evaluation in evaluations)]
    with write_atomically(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines))


def read_history(path: str | Path) -> tuple[dict[str, object], list[Evaluation]]:
    """The settings and the evaluations in the file at `path`, without a last line that is unfinished.

    ValueError if it is no history or is damaged; OSError if it cannot be read.
    """
    text = Path(path).read_bytes()
    return _parse(path, text[: text.rfind(b"\n") + 1].splitlines())


def best_archs(path: str | Path, count: int) -> list[Arch]:
    """The `count` architectures of the history at `path` whose first score is highest, the best first; ValueError if
    none has a score that is a number, and as `read_history` raises it."""
    scored = [(next(iter(own.scores.values())), own.arch) for own in read_history(path)[1] if own.scores]
    scored = [(score, arch) for score, arch in scored if not math.isnan(score)]
    if not scored:
        raise ValueError(f"{path} holds no architecture with a score")
    return [arch for _, arch in sorted(scored, key=lambda own: -own[0])[:count]]


def _parse(path: Path | str, lines: Sequence[bytes]) -> tuple[dict[str, object], list[Evaluation]]:
    header, *entries = parse_lines(lines, dict, path) or [{}]
    label = header.pop("format", None)
    if not str(label).startswith(HISTORY.prefix):
        raise ValueError(f"{path} is no search history: its first line should say {HISTORY.label!r}")
    evaluations = []
    for number, (line, entry) in enumerate(zip(lines[1:], entries), start=2):
        try:
            evaluations.append(Evaluation._of(entry))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is damaged ({error}): {line[:80]!r}") from None
    return HISTORY.upgraded(header, label, path), evaluations


def _difference(found: Mapping[str, object], wanted: Mapping[str, object], said_anew: Collection[str]) -> str:
    differences = []
    for name in dict.fromkeys([*found, *wanted]):
        values = [_without(settings.get(name), name, said_anew) for settings in (found, wanted)]
        if name not in said_anew and values[0] != values[1]:
            differences.append(f"its {name} is {values[0]!r}, not {values[1]!r}")
    return "; ".join(differences)


def _without(value: object, name: str, said_anew: Collection[str]) -> object:
    """A setting without those of its parts that may be said anew."""
    if not isinstance(value, Mapping):
        return value
    return {part: inner for part, inner in value.items() if f"{name}.{part}" not in said_anew}
