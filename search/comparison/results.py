"""The files of a comparison: what was handed in, and how strategies stand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from search.comparison.handed_in import HandedIn
from search.comparison.standings import Row
from search.comparison.yardsticks import Yardstick
from search.history import Evaluation
from search.sweep import Sweep, Trial
from search.table import write_csv
from supernet.space import Arch

STANDINGS = "strategies.csv"
HANDED_IN = "handed_in.csv"
MEASURED = "measured"  # folder of what was measured on this machine


def with_values(sweep: Sweep, found: Sequence[HandedIn], yardstick: Yardstick, values: Mapping[Arch, float]) -> Sweep:
    """The sweep with what was judged beside the score that a search went by, in evaluations that were handed in.

    A search's score of the yardstick's name by other settings, such as fewer images, is called `NAME of the search`.
    """
    return sweep._replace(trials=[_with_values(entry, yardstick, values) for entry in found])


def _with_values(entry: HandedIn, yardstick: Yardstick, values: Mapping[Arch, float]) -> Trial:
    name, trial = yardstick.name, entry.trial
    names = {} if yardstick.guided(trial) else {name: f"{name} of the search"}
    judged = {
        evaluation.arch: {name: values[evaluation.arch]} for evaluation in entry.front if evaluation.arch in values
    }

    def scores(evaluation: Evaluation) -> dict[str, float]:
        own = {names.get(score, score): value for score, value in evaluation.scores.items()}
        return own | judged.get(evaluation.arch, {})

    return trial._replace(evaluations=[dataclasses.replace(e, scores=scores(e)) for e in trial.evaluations])


def write_comparison(
    directory: Path,
    rows: Sequence[Row],
    yardstick: str,
    found: Sequence[HandedIn],
    values: Mapping[Arch, float],
    measured_ms: Mapping[str, Mapping[Arch, float]],
) -> None:
    """Write `strategies.csv`, the standings with the name of the `yardstick`, and `handed_in.csv`, a row for each
    architecture that a search handed in, its choice at place 0, with the score that the search went by."""
    write_csv(directory / STANDINGS, [{"judged_by": yardstick, **_without_nan(row)} for row in rows])
    handed = [
        {
            **entry.trial.settings,
            "place": place,
            "score": next(iter(evaluation.scores.values())),
            yardstick: values.get(evaluation.arch, ""),
            **evaluation.costs,
            "measured_ms": measured_ms.get(str(entry.trial.settings["device"]), {}).get(evaluation.arch, ""),
            "arch": evaluation.arch.to_json(),
        }
        for entry in found
        for place, evaluation in enumerate(entry.front)
    ]
    write_csv(directory / HANDED_IN, handed)


def _without_nan(row: Row) -> Row:
    return {name: "" if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
