"""What a report says of latency limits: how surely each architecture keeps within its search's, and of each front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from search.margin import beyond_measurements, limit_notes, probability_within
from search.report.candidate import Candidate
from search.report.progress import rounded
from search.report.sources import DeviceRecord, Search

# n candidates


def latency_limit(search: Search, device: DeviceRecord) -> float:
    """The milliseconds that a search limited the latency on a device to, infinite if it did not."""
    if search.settings.get("space") != device.predictor.space.fingerprint:
        return math.inf
    limits = search.settings.get("limits", {})
    return next((limits[name] for name in sorted(device.costs) if limits.get(name) is not None), math.inf)


def within(
    device: DeviceRecord | None, searches: Sequence[Search], candidates: Sequence[Candidate]
) -> list[float | None] | None:
    """For each candidate the probability of keeping within its search's limit on the device, None without a limit.

    None altogether if no search limited that latency.
    """
    found: list[float | None] = [None] * len(candidates)
    for number, search in enumerate(searches):
        limit_ms = latency_limit(search, device) if device else math.inf
        own = [index for index, candidate in enumerate(candidates) if candidate.search == number]
        if own and math.isfinite(limit_ms):
            archs = [candidates[index].arch for index in own]
            for index, probability in zip(own, probability_within(device.predictor, archs, limit_ms)):
                found[index] = rounded(probability)
    return None if all(probability is None for probability in found) else found


def notes(
    searches: Sequence[Search],
    device: DeviceRecord,
    probabilities: Sequence[float | None],
    measured_ms: Mapping[int, float],
    fronts: Sequence[Sequence[int]],
) -> list[str]:
    """What there is to say of each search's limit on the device and of its front, indices of candidates."""
    lines = []
    for search, front in zip(searches, fronts):
        limit_ms = latency_limit(search, device)
        if not math.isfinite(limit_ms):
            continue
        measured = [measured_ms.get(index, math.nan) for index in front]
        found = [beyond_measurements(device.name, device.predictor, limit_ms)] if front else []
        found += (
            limit_notes(device.name, limit_ms, [probabilities[index] for index in front], measured) if front else []
        )
        lines += [f"{search.name}: {line}" if len(searches) > 1 else line for line in found if line]
    return lines
