"""When a training is over because it has not become better for a while."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from supernet.training.loop.metrics import scalars


class Patience:
    """Counts the evaluations since the best one, by their first metric, in a supernet the largest subnet's; without
    `evaluations` it never ends."""

    def __init__(self, evaluations: int | None) -> None:
        self._evaluations = evaluations
        self._best, self._since = float("-inf"), 0

    def look_at(self, metrics: Mapping[str, Any]) -> None:
        """What an evaluation found, the same in all processes."""
        if self._evaluations is not None and metrics:
            value = next(value for _, value in scalars(metrics))
            self._best, self._since = (value, 0) if value > self._best else (self._best, self._since + 1)

    @property
    def is_over(self) -> bool:
        return self._evaluations is not None and self._since >= self._evaluations

    def __str__(self) -> str:
        return f"the last {self._since} evaluations were no better than {self._best:.4g}"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "since": self._since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._best, self._since = state["best"], state["since"]
