"""Figures of finished searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from search.history import Evaluation
from supernet.artifacts.atomic import write_atomically
from supernet.space import Arch


def plot_front(
    path: Path,
    evaluations: Sequence[Evaluation],
    front: Sequence[Evaluation],
    measured_ms: Mapping[Arch, float],
    chosen: Evaluation,
    device: str,
) -> None:
    """Write an SVG of accuracy against latency: all `evaluations` where predicted, the `front` where measured.

    Each evaluation has the score `accuracy`, from 0 to 1, and the cost `latency_ms`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    scored = [evaluation for evaluation in evaluations if evaluation.scores]
    axes.plot(*_points(scored), "o", color="#b8b8b8", markersize=4, label=f"{len(scored)} evaluated subnets")
    latency, accuracy = _points(front)
    axes.plot(latency, accuracy, "--", color="#0072b2", label="Pareto front, predicted latency")
    measured = [measured_ms[evaluation.arch] for evaluation in front]
    axes.plot(measured, accuracy, "s", color="#d55e00", markersize=6, label="measured latency")
    axes.plot(
        measured_ms[chosen.arch], 100 * chosen.scores["accuracy"], "*", color="black", markersize=15, label="chosen"
    )
    axes.set_xlabel(f"latency on {device} (ms)")
    axes.set_ylabel("accuracy on held-out images (%)")
    axes.set_ylim(bottom=np.quantile([100 * e.scores["accuracy"] for e in scored], 0.1))
    axes.grid(alpha=0.3)
    axes.legend()
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def _points(evaluations: Sequence[Evaluation]) -> tuple[list[float], list[float]]:
    """Latencies in ms and accuracies in percent."""
    return (
        [evaluation.costs["latency_ms"] for evaluation in evaluations],
        [100 * evaluation.scores["accuracy"] for evaluation in evaluations],
    )
