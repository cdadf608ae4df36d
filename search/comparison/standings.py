"""How strategies stand: for each device and limit, how good what each chose is, over its seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from search.comparison.handed_in import HandedIn
from supernet.space import Arch

# n seeds

Row = dict[str, object]


def standings(
    found: Sequence[HandedIn],
    values: Mapping[Arch, float],
    latency_ms: Mapping[str, Mapping[Arch, float]],
    measured_ms: Mapping[str, Mapping[Arch, float]],
) -> list[Row]:
    """For each device and limit a row for each strategy, the best first, from what trials handed in, the `values` of
    all that was judged, their predicted latencies by device, and what was measured where a device is here.

    `value` is the mean of what the trials of a row chose, one a seed, and `standard_error` that of this mean, NaN of a
    single one. `regret` is how far the value is from the best that is known within the limit, whoever found it.
    `told_apart` says whether the first row's value is higher by more than two standard errors of the difference: "no"
    also where nothing is known of the errors, or both are 0 because all seeds chose alike, and empty in the first row.
    `failed` counts trials that chose nothing that could be judged; they are in no mean. `seconds` are those of a
    search, without what all searches share.
    """
    rows: list[Row] = []
    for (device, limit), on_device in _groups(found, ("device", "limit_ms")).items():
        own = {evaluation.arch for entry in on_device for evaluation in entry.front}
        within = [value for arch, value in values.items() if arch in own or latency_ms[device][arch] <= limit]
        best = max(within, default=math.nan)
        table = [
            {"device": device, "limit_ms": limit, "strategy": strategy}
            | _row(same, values, best, device, measured_ms.get(device, {}))
            for (strategy,), same in _groups(on_device, ("strategy",)).items()
        ]
        table.sort(key=lambda row: (math.isnan(row["value"]), -row["value"]))
        rows += [row | {"told_apart": "" if row is table[0] else _told_apart(table[0], row)} for row in table]
    return rows


def _groups(found: Sequence[HandedIn], names: Sequence[str]) -> dict[tuple, list[HandedIn]]:
    """What trials that agree in the settings `names` handed in, by these settings."""
    groups: dict[tuple, list[HandedIn]] = {}
    for entry in found:
        groups.setdefault(tuple(entry.trial.settings[name] for name in names), []).append(entry)
    return groups


def _row(
    found: Sequence[HandedIn], values: Mapping[Arch, float], best: float, device: str, measured_ms: Mapping[Arch, float]
) -> Row:
    chosen = [entry.front[0] for entry in found if entry.front and entry.front[0].arch in values]
    of_choices = [values[evaluation.arch] for evaluation in chosen]
    value = _mean(of_choices)
    return {
        "seeds": len(found),
        "failed": len(found) - len(chosen),
        "value": value,
        "standard_error": _standard_error(of_choices),
        "regret": best - value,
        "latency_ms": _mean([evaluation.costs[device] for evaluation in chosen]),
        "measured_ms": _mean([measured_ms[evaluation.arch] for evaluation in chosen if evaluation.arch in measured_ms]),
        "evaluations": _mean([len(entry.trial.evaluations) for entry in found]),
        "seconds": _mean([entry.trial.seconds for entry in found]),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _standard_error(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    if np.ptp(values) == 0:  # of equal values the deviation may be a rounding error
        return 0.0
    return float(np.std(values, ddof=1)) / len(values) ** 0.5


def _told_apart(first: Row, row: Row) -> str:
    error = math.hypot(first["standard_error"], row["standard_error"])
    return "yes" if error > 0 and first["value"] - row["value"] > 2 * error else "no"
