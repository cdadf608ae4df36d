"""A latency predictor's file: JSON with a version and a checksum; files of earlier versions are read as of today's."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from supernet.artifacts.atomic import write_atomically

VERSION = 2


def write(path: Path, content: dict) -> None:
    """Write `content`, whole or not at all."""
    content = {"version": VERSION, **content}
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps({"sha256": _digest(content), **content}) + "\n")


def read(path: Path) -> dict:
    """What `write` was given, or would be given today for a file of an earlier version.

    ValueError if the file is not there, damaged, edited or of a later version.
    """
    if not path.is_file():
        raise ValueError(
            f"{path.parent} is no folder of a latency predictor: it has no {path.name}; name that of a device"
        )
    try:
        content = json.loads(path.read_text())
        digest = content.pop("sha256")
        version = content["version"]
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, TypeError, KeyError):
        raise ValueError(f"{path} is no latency predictor, or damaged: fit and save it again") from None
    if version not in (1, VERSION):
        raise ValueError(f"{path} has version {version!r}, this package reads 1 and {VERSION}: fit and save it again")
    if digest != _digest(content):
        raise ValueError(f"{path} was edited or damaged after it was saved: fit and save it again")
    return _from_version_1(content) if version == 1 else content


def _from_version_1(content: dict) -> dict:
    """Version 1 had one method, and judged it by the measurements that it had been chosen by."""
    names = ("kind", "logarithmic", "sources", "log_variances")
    method = {name: content.pop(name) for name in names} | {"weight": 1.0}
    return content | {"methods": [method], "held_out_ms": None, "held_out_error_ms": None}


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
