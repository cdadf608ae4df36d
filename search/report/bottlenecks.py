"""What holds the architectures of a front back on devices whose roofline is known, without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress.diagnosis import diagnose
from search.report.candidate import Candidate
from search.report.progress import rounded
from search.report.sources import DeviceRecord, Sources
from supernet.artifacts.runs import read_family
from supernet.families import FAMILIES, Family

MOST = 12  # architectures of a front, evenly spread: each takes some tenths of a second
SLOWEST = 3  # layers that are named
UNFUSED = ("torch", "cuda", "cuda_graph")  # runtimes that run each operation as it is

Found = Mapping[int, Mapping[str, Any]]  # by the index of a candidate


def bottlenecks(
    sources: Sources, device: DeviceRecord | None, candidates: Sequence[Candidate], front: Sequence[int]
) -> Found:
    """For some of the `front`, the `shares` of the time that go into compute, bandwidth and overhead, the largest
    first, and the `layers` that take the largest parts of it, by the roofline of the `device`.

    Of searches on runs whose space is of this package, as no other code is imported for a report. Empty where the
    device has no roofline (`supernet diagnose` measures one).
    """
    if device is None or device.roofline is None or device.predictor.device is None:
        return {}
    bits, fused = device.predictor.device.bits, device.predictor.device.runtime not in UNFUSED
    families: dict[Path, Family | None] = {}
    found = {}
    for position in dict.fromkeys(np.linspace(0, len(front) - 1, min(MOST, len(front))).round().astype(int).tolist()):
        candidate = candidates[front[position]]
        family = _family(sources, candidate, families)
        if family is None:
            continue
        with torch.device("meta"):
            model = family.build(candidate.arch).eval()
        diagnosis = diagnose(model, family.example(candidate.arch), device.roofline, bits, fused=fused)
        slowest = sorted(diagnosis.layers, key=lambda layer: -layer.estimate_ms)[:SLOWEST]
        parts = [(layer.name, rounded(layer.estimate_ms / max(diagnosis.estimate_ms, 1e-12))) for layer in slowest]
        shares = sorted(diagnosis.shares.items(), key=lambda own: -own[1])
        found[front[position]] = {"shares": [(name, rounded(part)) for name, part in shares], "layers": parts}
    return found


def _family(sources: Sources, candidate: Candidate, known: dict[Path, Family | None]) -> Family | None:
    """That of the run which the candidate's search searched."""
    search = sources.searches[candidate.search]
    if search.run is None or search.run not in sources.runs:
        return None
    if search.run not in known:
        is_known = sources.runs[search.run]["job"].get("space") in FAMILIES
        known[search.run] = read_family(search.run) if is_known else None
    family = known[search.run]
    return family if family and family.space.fingerprint == search.settings.get("space") else None
