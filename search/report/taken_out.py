"""What was taken out of a search, and how good it is on the test images: a line for each in the search's folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

from search.report.answered import Answered, write_answered
from supernet.artifacts.reading import parse_lines
from supernet.space import Arch, Value

FILE = "taken_out.jsonl"


class TakenOut(TypedDict):
    """A subnet that was taken out."""

    arch: dict[str, Value]
    folder: str  # relative to that of the search
    facts: dict[str, float]  # metrics of its task on test examples, and costs
    test_examples: int
    answered: NotRequired[str]  # the file with its answers, beside this one


def note_taken_out(
    search: Path,
    arch: Arch,
    folder: Path,
    facts: Mapping[str, float],
    test_examples: int,
    answered: Answered | None = None,
) -> None:
    """Add the subnet in `folder` to those taken out of the search in the folder `search`, with its answers if they are
    known."""
    line: TakenOut = {
        "arch": dict(arch),
        "folder": os.path.relpath(folder, search),
        "facts": dict(facts),
        "test_examples": test_examples,
    }
    if answered is not None:
        line["answered"] = f"answered_{hashlib.sha256(arch.to_json().encode()).hexdigest()[:12]}.json"
        write_answered(search / line["answered"], answered)
    with (search / FILE).open("a") as file:
        file.write(json.dumps(line) + "\n")


def read_taken_out(search: Path) -> dict[Arch, TakenOut]:
    """The subnets that were taken out of the search in the folder `search`, of each architecture the last; ValueError,
    naming the line, if one is damaged."""
    path = search / FILE
    text = path.read_bytes() if path.exists() else b""
    lines = text[: text.rfind(b"\n") + 1].splitlines()
    return {Arch(line["arch"]): line for line in parse_lines(lines, TakenOut, path)}
