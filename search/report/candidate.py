"""What a report shows a point of: an architecture that a search evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from supernet.space import Arch


@dataclass(frozen=True)
class Candidate:
    """An evaluated architecture, and where it was evaluated."""

    search: int
    line: int  # in the history, the first evaluation being 1, as `supernet extract` counts
    generation: int
    arch: Arch
    score: float
    costs: Mapping[str, float]
