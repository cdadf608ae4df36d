"""How searches went, and how strategies compare: hypervolumes by generation, and means over seeds."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from search import pareto
from search.counts import is_count

if TYPE_CHECKING:
    from search.report.sources import Search

Content = dict[str, Any]


def search_content(searches: Sequence[Search], index: int, group: int, score: str, worst: float) -> Content:
    """What a report says of one of its searches, judged by `score` of which `worst` is the reference, and the two parts
    of the command that takes an architecture out, between and behind which belongs the number of its line."""
    search = searches[index]
    reference = {name: _reference(searches, search, name) for name in objectives(search)}
    volumes = hypervolumes(search, score, reference, worst)
    run = shlex.quote(str(search.run)) if search.run else "RUN"
    slug = re.sub(r"[^\w.-]+", "-", search.name).strip("-") or "subnet"
    return {
        "name": search.name,
        "group": group,
        "folder": str(search.folder),
        "strategy": search.strategy,
        "trial": {name: _finite(value) for name, value in search.trial.items()},
        "objectives": list(reference),
        "limits": {name: _finite(value) for name, value in search.settings.get("limits", {}).items()},
        "evaluated": len(search.evaluations),
        "failed": sum(bool(evaluation.error) for evaluation in search.evaluations),
        "generations": [(evaluated, rounded(volume)) for evaluated, volume in volumes],
        "command": [
            f"supernet extract --run {run} --history {shlex.quote(str(search.history))} --line ",
            f" --output subnets/{slug}-",
        ],
    }


def _reference(searches: Sequence[Search], search: Search, cost: str) -> float:
    """A search's limit on a cost, or the dearest that any search of the report evaluated."""
    limit = search.settings.get("limits", {}).get(cost, math.inf)
    if math.isfinite(limit):
        return limit
    return max(e.costs[cost] for other in searches for e in other.evaluations if cost in e.costs)


def hypervolumes(
    search: Search, score: str, reference: Mapping[str, float], worst: float = 0.0
) -> list[tuple[int, float]]:
    """After each generation, how many architectures were evaluated and the hypervolume of the `score`, above `worst`,
    and of the costs of `reference`, each as a part of the value there, the largest that counts; higher is better.
    """
    table = np.array(
        [
            [
                -e.scores.get(score, -math.inf),
                *(e.costs.get(name, math.inf) / value for name, value in reference.items()),
            ]
            for e in search.evaluations
        ]
    )
    ends = Counter(e.generation for e in search.evaluations)
    box = np.array([-worst, *[1.0 + 1e-9] * len(reference)])  # the dearest itself still counts
    found, front, begin = [], np.empty((0, 1 + len(reference))), 0
    for generation in sorted(ends):
        end = begin + ends[generation]
        together = np.concatenate([front, table[begin:end]])
        front = together[pareto.front(together)]
        found.append((end, pareto.hypervolume(front, box)))
        begin = end
    return found


def objectives(search: Search) -> list[str]:
    """The costs that a search traded off: the objectives that it names, or else the latency on every device, or
    MACs."""
    named = [name for name in search.settings.get("objectives", []) if name not in search.settings.get("scores", [])]
    costs = search.evaluations[0].costs if search.evaluations else {}
    named = [name for name in named if any(name in evaluation.costs for evaluation in search.evaluations)]
    return named or [name for name in costs if not is_count(name)] or [name for name in costs if name == "macs"]


def comparison(
    searches: Sequence[Search], contents: Sequence[Content], groups: Sequence[str], score: str
) -> list[Content]:
    """For each device and limit, a row for each group: mean and standard deviation over its searches (seeds)."""
    table: dict[tuple, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, content in enumerate(contents):
        key = (*content["objectives"], *(f"{n} ≤ {v:g}" for n, v in content["limits"].items() if v is not None))
        table[key][content["group"]].append(index)
    rows = []
    for key, found in table.items():
        for group, members in sorted(found.items()):
            best = [max(e.scores[score] for e in searches[i].evaluations if score in e.scores) for i in members]
            volume = [contents[i]["generations"][-1][1] for i in members]
            rows.append(
                {
                    "task": ", ".join(key),
                    "group": groups[group],
                    "searches": len(members),
                    "evaluated": rounded(np.mean([contents[i]["evaluated"] for i in members])),
                    "best": _mean(best),
                    "hypervolume": _mean(volume),
                }
            )
    return rows


def _mean(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation, None of a single value."""
    return rounded(np.mean(values)), rounded(np.std(values, ddof=1)) if len(values) > 1 else None


def _finite(value: Any) -> Any:
    return value if isinstance(value, str) or math.isfinite(value) else None


def rounded(value: float) -> float | None:
    """Five digits, None if it is not finite: what JSON can hold."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
