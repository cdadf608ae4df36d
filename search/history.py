"""The record of a search: JSON lines, one header and then one line for every evaluation.

A line is written as soon as its evaluation ends, so that a search that is killed loses nothing it has evaluated.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from supernet.atomic import write_atomically
from supernet.space import Arch

FORMAT = "supernet search history 1"


@dataclass(frozen=True)
class Evaluation:
    """An evaluated architecture. A failed one has an `error` and no scores."""

    arch: Arch
    scores: Mapping[str, float]
    costs: Mapping[str, float]
    generation: int
    error: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"arch": dict(self.arch)})

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        fields = json.loads(text)
        return cls(**fields | {"arch": Arch(fields["arch"])})


class History:
    """Appends evaluations to the file at `path`; `past` holds those that it already had.

    `settings` (JSON) say which search this is. With `resume`, a file of the same settings is continued; a last line
    that a killed process left unfinished is dropped. ValueError if the file exists and `resume` is false, if it is of
    another search (named setting by setting), or is damaged.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, object], resume: bool = False) -> None:
        self.path = Path(path)
        self.past: dict[Arch, Evaluation] = {}
        if self.path.exists() and not resume:
            raise ValueError(f"{self.path} exists already: resume that search, or choose another place")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        try:
            self._load(json.loads(json.dumps(settings)))
        except BaseException:
            self._file.close()
            raise

    def append(self, evaluation: Evaluation) -> None:
        self.past[evaluation.arch] = evaluation
        self._write(evaluation.to_json())

    def close(self) -> None:
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self, settings: dict[str, object]) -> None:
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        self._file.truncate(len(whole))
        if not whole:
            self._write(json.dumps({"format": FORMAT} | settings))
            return
        found, evaluations = _parse(self.path, whole)
        if found != settings:
            raise ValueError(f"{self.path} is the history of another search: {_difference(found, settings)}")
        self.past = {evaluation.arch: evaluation for evaluation in evaluations}

    def _write(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")
        self._file.flush()


def write_history(path: str | Path, settings: Mapping[str, object], evaluations: Iterable[Evaluation]) -> None:
    """Write a finished search's history as a whole, as `read_history` reads it."""
    lines = [json.dumps({"format": FORMAT, **settings}), *(evaluation.to_json() for evaluation in evaluations)]
    with write_atomically(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines))


def read_history(path: str | Path) -> tuple[dict[str, object], list[Evaluation]]:
    """The settings and the evaluations in the file at `path`, without a last line that is unfinished.

    ValueError if it is no history or is damaged; OSError if it cannot be read.
    """
    text = Path(path).read_bytes()
    return _parse(Path(path), text[: text.rfind(b"\n") + 1])


def _parse(path: Path, text: bytes) -> tuple[dict[str, object], list[Evaluation]]:
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            entries.append(json.loads(line) if number == 1 else Evaluation.from_json(line))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}, is damaged ({error}): {line[:80]!r}") from None
    if not entries or not isinstance(entries[0], dict) or entries[0].pop("format", None) != FORMAT:
        raise ValueError(f"{path} is no search history: its first line should say {FORMAT!r}")
    return entries[0], entries[1:]


def _difference(found: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    return "; ".join(
        f"its {name} is {found.get(name)!r}, not {wanted.get(name)!r}"
        for name in dict.fromkeys([*found, *wanted])
        if found.get(name) != wanted.get(name)
    )
