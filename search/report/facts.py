"""What searches and trainings were asked for, and on which data: what a reader needs to judge and to repeat them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from search.report.sources import Search, Sources

Facts = list[dict[str, Any]]  # of each a name, and pairs of what and which


def facts(sources: Sources) -> Facts:
    """For each folder of a search, and each training run, a name and pairs of texts; a sweep's folder has one entry."""
    found: Facts = []
    for folder in dict.fromkeys(search.folder for search in sources.searches):
        own = [search for search in sources.searches if search.folder == folder]
        found.append({"name": f"search {folder.resolve().name}", "pairs": _known(_of_searches(own))})
    for run, config in sources.runs.items():
        found.append({"name": f"training {run.resolve().name}", "pairs": _known(_of_run(config))})
    return found


def _known(pairs: Mapping[str, object]) -> list[tuple[str, str]]:
    return [(what, str(which)) for what, which in pairs.items() if which not in (None, "", {}, [])]


def _of_searches(searches: list[Search]) -> dict[str, object]:
    settings, origin = searches[0].settings, searches[0].origin
    limits = {name: limit for name, limit in (settings.get("limits") or {}).items() if _is_finite(limit)}
    return {
        "found by": ", ".join(dict.fromkeys(search.strategy for search in searches)),
        "searches": len(searches) if len(searches) > 1 else None,
        "architectures evaluated": sum(len(search.evaluations) for search in searches),
        "at most": ", ".join(f"{limit:g} of {name}" for name, limit in limits.items()) if len(searches) == 1 else None,
        "judged by at most": f"{settings['images']} held-out images" if settings.get("images") else None,
        "seed": settings.get("seed"),
        "command": origin.get("command"),
        "date": origin.get("date"),
    }


def _of_run(config: Mapping[str, Any]) -> dict[str, object]:
    job, parts = config["job"], _object(config.get("images"))
    data, train = _object(job.get("data")), _object(job.get("train"))
    classes = config.get("classes")
    return {
        "space": job.get("space"),
        "data": data.get("dataset"),
        "images to train": parts.get("train"),
        "images held out": config["held_out"],
        "images to test": parts.get("test"),
        "classes": len(classes) if isinstance(classes, list) else None,
        "epochs": train.get("epochs"),
        "method": train.get("method"),
        "seed": train.get("seed"),
        "command": config.get("command"),
        "date": config.get("date"),
    }


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
