"""The main figures of a report as SVG and PNG, for papers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from search.certainty import NORMAL_95
from search.report.content import Content
from search.settings import ACCURACY
from supernet.artifacts.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito
MARKS = "osD^Xv"
DASHES = ("-", "--", ":", "-.")


def write_figures(content: Content, folder: Path) -> list[Path]:
    """Write the front for every axis, the hypervolume, every device's predictions and the training curves to `folder`,
    each as SVG and as PNG; the paths of the files.
    """
    figures: dict[str, Figure] = {}
    for index, axis in enumerate(content["axes"]):
        axes = _axes(figures, f"front_{axis['name']}")
        _front(axes, content, index)
    _hypervolume(_axes(figures, "hypervolume"), content)
    for device in content["devices"]:
        _device(_axes(figures, f"predicted_{device['name']}"), device)
    for training in content["trainings"]:
        for what, curves in (*training["metrics"].items(), ("losses", training["losses"])):
            if curves:
                _curves(_axes(figures, f"{what}_{training['name']}"), curves, what)
    paths = []
    for name, figure in figures.items():
        for kind in ("svg", "png"):
            path = folder / f"{re.sub(r'[^-.A-Za-z0-9_]+', '-', name)}.{kind}"
            with write_atomically(path) as temporary:
                figure.savefig(temporary, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
            paths.append(path)
    return paths


def _axes(figures: dict[str, Figure], name: str) -> Axes:
    from matplotlib.figure import Figure

    figures[name] = Figure(figsize=(6, 4), layout="constrained")
    axes = figures[name].subplots()
    axes.grid(alpha=0.3)
    return axes


def _front(axes: Axes, content: Content, axis: int) -> None:
    candidates, scale = content["candidates"], 100 if content["score"]["percent"] else 1
    costs = np.array(candidates["costs"][axis], dtype=float)  # None becomes NaN
    scores = scale * np.array(candidates["score"])
    axes.plot(costs, scores, ".", color="#b8b8b8", label=f"{np.isfinite(costs).sum()} evaluated", zorder=1)
    errors = candidates["errors"][axis]
    for group, front in enumerate(content["group_fronts"][axis]):
        intervals = [candidates["interval"][index] for index in front]
        vertical = None
        if all(intervals) and front:
            low, high = scale * np.array(intervals).T
            vertical = np.maximum([scores[front] - low, high - scores[front]], 0)
        axes.errorbar(
            costs[front],
            scores[front],
            yerr=vertical,
            xerr=None if errors is None else NORMAL_95 * np.array(errors, dtype=float)[front],
            fmt=MARKS[group % len(MARKS)],
            linestyle=DASHES[group % len(DASHES)],
            color=COLOURS[group % len(COLOURS)],
            elinewidth=0.8,
            label="Pareto front" if len(content["groups"]) == 1 else f"front of {_plain(content['groups'][group])}",
        )
    name, unit = content["axes"][axis]["name"], content["axes"][axis]["unit"]
    axes.set_xlabel(f"latency on {_plain(name)} (ms)" if unit else _plain(name.replace("_", " ")))
    axes.set_ylabel(content["score"]["name"] + (" on held-out images (%)" if scale == 100 else ""))
    axes.set_ylim(bottom=np.quantile(scores, 0.05))
    axes.legend()


def _hypervolume(axes: Axes, content: Content) -> None:
    labelled = set()
    for search in content["searches"]:
        group = search["group"]
        axes.plot(
            *zip(*search["generations"]),
            marker=MARKS[group % len(MARKS)],
            linestyle=DASHES[group % len(DASHES)],
            color=COLOURS[group % len(COLOURS)],
            label=None if group in labelled else _plain(content["groups"][group]),
        )
        labelled.add(group)
    axes.set_xlabel("architectures evaluated")
    axes.set_ylabel("hypervolume")
    axes.legend()


def _device(axes: Axes, device: Content) -> None:
    for fitted, label in ((True, "predicted from all other measurements"), (False, "measured after the search")):
        points = [
            (measured, predicted) for measured, predicted, _, was_fitted in device["points"] if was_fitted == fitted
        ]
        if points:
            axes.plot(*zip(*points), MARKS[not fitted], color=COLOURS[not fitted], label=label)
    axes.axline((0, 0), slope=1, color="#8c959f", linestyle="--", label="equal")
    axes.set_xlabel(f"measured on {_plain(device['name'])} (ms)")
    axes.set_ylabel("predicted (ms)")
    axes.legend()


def _curves(axes: Axes, curves: Content, what: str) -> None:
    scale = 100 if what == ACCURACY else 1
    for index, (name, points) in enumerate(curves.items()):
        steps, values = np.array(points, dtype=float).T
        axes.plot(steps, scale * values, DASHES[index % len(DASHES)], color=COLOURS[index % len(COLOURS)], label=name)
    axes.set_xlabel("step")
    titles = {ACCURACY: "accuracy on held-out images (%)", "losses": "training loss"}
    axes.set_ylabel(titles.get(what, f"{_plain(what)} on held-out examples"))
    axes.legend()


def _plain(name: str) -> str:
    """`name` as it stands, where matplotlib would read mathematics between dollar signs."""
    return name.replace("$", r"\$")
