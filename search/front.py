"""How sure a search's front is: columns and lines for its table, from what each architecture makes of each example."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from search.certainty import Certainty, Interval, certainty, decimals
from search.history import Evaluation
from search.scores.accuracy import Judged
from supernet.space import Arch

# n architectures, N examples

AS_GOOD = "as good as the best"
LOW, HIGH, CONFIRMED = "low", "high", "confirmed"  # NAME, low; NAME, confirmed; NAME, confirmed, low


class FrontCertainty(NamedTuple):
    """How sure the front of a search is, its architectures in a given order."""

    name: str  # of the score
    scores: list[float]  # [n] that the search chose by
    found: Certainty | None  # of these; None where the score is no mean of examples' values
    confirmed: list[float] | None = None  # [n] on fresh examples; None if there were none
    fresh: Certainty | None = None  # of the latter

    @property
    def best(self) -> int:
        return int(np.argmax(self.scores))

    @property
    def as_good(self) -> list[bool] | None:
        """Whether each cannot be told apart from the best: by the fresh examples if there are any, to which the best is
        one of the front, or else by those that it was picked by among all that were evaluated."""
        known = self.fresh or self.found
        return known and known.as_good

    def columns(self) -> list[dict[str, object]]:
        """For each architecture, by column, its score with its interval of 95 %, the same on fresh examples, and
        whether it is as good as the best; each with as many digits as the interval supports."""
        rows: list[dict[str, object]] = [{} for _ in self.scores]
        for name, scores, known in (
            (self.name, self.scores, self.found),
            (f"{self.name}, {CONFIRMED}", self.confirmed, self.fresh),
        ):
            for index, score in enumerate(scores or ()):
                rows[index] |= _with_interval(name, score, known and known.intervals[index])
        for row, as_good in zip(rows, self.as_good or ()):
            row[AS_GOOD] = "yes" if as_good else "no"
        return rows

    def notes(self) -> list[str]:
        """Lines on what the examples cannot tell, and on how far the best fell on fresh ones."""
        if self.found is None:
            lines = [f"{self.name} is no mean over examples: how sure it is, and what it can tell apart, is unknown"]
        else:
            lines = _on_choice(self.name, self.found, self.as_good, self.fresh)
        if self.confirmed is not None:
            before, after = self.scores[self.best], self.confirmed[self.best]
            intervals = (known and known.intervals[self.best] for known in (self.found, self.fresh))
            lines.append(_on_fall(self.name, before, after, *intervals))
        return lines


def front_certainty(
    name: str,
    front: Sequence[Evaluation],
    considered: int,
    judged: Mapping[Arch, Judged],
    confirmed: Mapping[Arch, Judged] | None = None,
) -> FrontCertainty | None:
    """How sure `front` is in the score `name`, the best of `considered` architectures that were evaluated, from what
    `search.run.run_search` gives of it: `judged` and, if it was asked to confirm, `confirmed`.

    None if the front is empty or was not judged.
    """
    if not front or not judged:
        return None
    archs = [evaluation.arch for evaluation in front]
    scores = [evaluation.scores[name] for evaluation in front]
    best = int(np.argmax(scores))
    fresh = [confirmed[arch].score for arch in archs] if confirmed else None
    return FrontCertainty(
        name,
        scores,
        _certainty(archs, judged, best, considered),
        fresh,
        _certainty(archs, confirmed, best, len(archs)) if confirmed else None,
    )


def _certainty(archs: Sequence[Arch], judged: Mapping[Arch, Judged], best: int, considered: int) -> Certainty | None:
    """None where scores are no means of examples' values, or there is a single example."""
    values = [judged[arch].per_example for arch in archs]
    if any(own is None or len(own) < 2 for own in values):
        return None
    return certainty(np.stack(values), best, considered)


def _with_interval(name: str, score: float, interval: Interval | None) -> dict[str, object]:
    if interval is None:
        return {name: score}
    digits = decimals(interval)
    low, high = (round(end, digits) for end in interval)
    return {name: round(score, digits), f"{name}, {LOW}": low, f"{name}, {HIGH}": high}


def _on_choice(name: str, found: Certainty, as_good: Sequence[bool], fresh: Certainty | None) -> list[str]:
    lines = []
    alike, others = sum(as_good) - 1, len(as_good) - 1
    if alike:
        by = f"{(fresh or found).examples} {'fresh ' if fresh else ''}held-out examples"
        among = "" if fresh else f", corrected for the {found.considered} architectures that the best was picked from"
        whom = (
            f"{alike} of the front's {others} other architectures" if others > 1 else "the front's other architecture"
        )
        lines.append(f"{whom} cannot be told apart from the best by {by} (paired tests at 5 %{among})")
    if found.detectable > found.spread > 0:
        lines.append(
            f"{found.examples} held-out examples are too few for this choice: the front spans {found.spread:.2g} in "
            f"{name}, and they tell differences of {found.detectable:.2g} apart; some {_needed(found)} would do: judge "
            "by more (--images), or hold out more in training (--holdout)"
        )
    return lines


def _needed(found: Certainty) -> int:
    """Examples that would tell the ends of the front apart, in two digits."""
    needed = found.examples * (found.detectable / found.spread) ** 2
    unit = 10 ** max(math.floor(math.log10(needed)) - 1, 0)
    return math.ceil(needed / unit) * unit


def _on_fall(name: str, before: float, after: float, found: Interval | None, fresh: Interval | None) -> str:
    """How far a score fell, in the digits of what it would by chance."""
    by_chance = math.hypot(*((high - low) / 2 for low, high in (found, fresh))) if found and fresh else 0.0
    digits = decimals((-by_chance, by_chance)) if by_chance else 4
    now, then, change = (f"{value:.{digits}f}" for value in (after, before, abs(after - before)))
    line = f"{name} of the best: {now} on fresh held-out examples, {change} {'less' if after < before else 'more'} than"
    line += f" the {then} that it was picked by"
    return f"{line} (by chance alone up to {by_chance:.{digits}f})" if by_chance else line
