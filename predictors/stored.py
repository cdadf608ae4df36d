"""A latency predictor's file: JSON with the number of its format, called version, and a checksum."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from supernet.artifacts.atomic import write_json
from supernet.artifacts.formats import PREDICTOR
from supernet.artifacts.reading import read_json


def write(path: Path, content: dict) -> None:
    """Write `content`, whole or not at all."""
    content = {"version": PREDICTOR.label, **content}
    write_json(path, {"sha256": _digest(content), **content}, indent=None)


def read(path: Path) -> dict:
    """What `write` was given, or would be given today for a file of an earlier version.

    ValueError if the file is not there, damaged, edited or of a later version.
    """
    if not path.is_file():
        raise ValueError(
            f"{path.parent} is no folder of a latency predictor: it has no {path.name}; name that of a device"
        )
    try:
        content = read_json(path, dict, "latency predictor")
        digest, version = content.pop("sha256"), content["version"]
    except (ValueError, KeyError):
        raise ValueError(f"{path} is no latency predictor, or damaged: fit and save it again") from None
    PREDICTOR.number_of(version, path)
    if digest != _digest(content):
        raise ValueError(f"{path} was edited or damaged after it was saved: fit and save it again")
    return PREDICTOR.upgraded(content, version, path)


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
