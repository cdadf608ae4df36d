"""Which searches of a report belong together, and what they are called beside the others."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search.report.sources import Search


def groups(searches: Sequence[Search]) -> tuple[list[str], list[int]]:
    """The names of what is compared, and which of them each search belongs to.

    Trials of sweeps belong together by strategy. Other searches do if they differ in their seed alone. A group is named
    after its strategy, or, where another has the same, after its folder; where this makes one group only, each folder
    is a group.
    """
    keys = [_key(search) for search in searches]
    firsts = {key: search for key, search in reversed(list(zip(keys, searches)))}
    order = list(dict.fromkeys(keys))
    folders = distinct_names([search.folder for search in searches])
    if len(order) > 1:
        strategies = [firsts[key].strategy for key in order]
        several = len(set(strategies)) > 1
        names = [
            strategy
            if strategies.count(strategy) == 1
            else folders[firsts[key].folder] + (f" ({strategy})" if several else "")
            for key, strategy in zip(order, strategies)
        ]
        return names, [order.index(key) for key in keys]
    labels = list(folders)
    return list(folders.values()), [labels.index(search.folder) for search in searches]


def distinct_names(folders: Sequence[Path]) -> dict[Path, str]:
    """Each folder's name, with as many folders above it as tell it from the others."""
    parts = {folder: folder.resolve().parts for folder in folders}
    count = dict.fromkeys(parts, 1)
    while True:
        names = {folder: "/".join(own[-count[folder] :]) for folder, own in parts.items()}
        alike = [
            folder
            for folder, name in names.items()
            if list(names.values()).count(name) > 1 and count[folder] < len(parts[folder])
        ]
        if not alike:
            return names
        for folder in alike:
            count[folder] += 1


def _key(search: Search) -> Hashable:
    if search.trial:
        return search.strategy
    settings = {name: value for name, value in search.settings.items() if name != "seed"}
    return search.strategy, search.run, json.dumps(settings, sort_keys=True, default=str)
