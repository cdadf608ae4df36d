"""What may be compared, by name: a strategy, a score, or both."""

from __future__ import annotations

from search.scores.untrained import ENSEMBLES, NAMES
from search.settings import SCORES
from search.strategies import STRATEGIES, check_strategy


def entry_settings(entry: str) -> dict[str, object]:
    """The settings of a `SearchJob` that STRATEGY, SCORE or STRATEGY:SCORE stands for.

    A strategy alone goes by accuracy; a score alone is searched in the way that comes with it, or by evolution. Beside
    the scores of a search, each that `zero_cost` combines may be named by itself: `ntk`, `synflow`, `macs`. ValueError
    for another name.
    """
    if entry in STRATEGIES:
        return {"strategy": entry}
    strategy, _, score = entry.rpartition(":")
    if strategy:
        check_strategy(strategy)
    settings: dict[str, object] = {"strategy": strategy or None}
    if score in SCORES:
        return settings | {"score": score}
    alone = [name for name in (*NAMES, *ENSEMBLES) if name not in SCORES]
    if score in alone:
        return settings | {"score": "zero_cost", "zero_cost": (score,)}
    raise ValueError(
        f"there is no strategy and no score {score!r}; the strategies are {', '.join(STRATEGIES)}, the scores "
        f"{', '.join([*SCORES, *alone])}, and STRATEGY:SCORE names both"
    )
