"""The settings by which the files of a folder were made, noted down beside them."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from supernet.artifacts.atomic import write_json
from supernet.artifacts.reading import read_json
from supernet.training.execution import differences


def note_settings(path: Path, settings: Any, but: Collection[str] = ()) -> None:
    """Write `settings`, a dataclass, to the file at `path` as JSON, without the fields in `but`, which may change.

    ValueError, naming settings and their former values, if the file is there and holds others.
    """
    own = {name: value for name, value in asdict(settings).items() if name not in but}
    own = json.loads(json.dumps(own, default=str))
    if not path.exists():
        write_json(path, own)
        return
    if changed := differences(read_json(path, dict, "file of settings"), own):
        raise ValueError(f"{path.parent} was begun with other settings ({changed}): name another folder")
