"""Show how far devices agree on which architectures are fast, and where they disagree.

    supernet compare-devices --plot devices.png

Reads the predictors in FOLDER/DEVICE/, asks them for 1,000 random architectures, and prints Spearman's rank correlation
for every two devices and the architectures on which those that agree least disagree most. Of each device it says whose
predictor would do in the place of its own: how well that ranks what was measured on the device, and how much slower
than the fastest tenth by its own the fastest tenth by the other's predictor is. Seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import isnan
from pathlib import Path

from rich.table import Column, Table

from predictors.comparison import Comparison, Disagreement, StandIn, compare, disagreements, stand_ins
from predictors.latency import load_devices
from supernet_cli.command_line import console
from supernet_cli.flags import parse_flags


@dataclass(frozen=True)
class Arguments:
    folder: Path = Path("runs/latency")
    """Folder with one folder a device."""
    devices: tuple[str, ...] = ()
    """Devices to compare; by default all in the folder."""
    archs: int = 1000
    """Random architectures to compare by."""
    disagreements: int = 6
    """Architectures to show that the two devices which agree least disagree on most."""
    most_loss: float = 2.0
    """Percent that choosing by another device's predictor may cost for it to do."""
    plot: Path | None = None
    """Image file for a plot of these two devices (needs matplotlib)."""
    seed: int = 0
    """Which architectures are drawn."""


def main() -> None:
    arguments = parse_flags(Arguments, __doc__)
    predictors = load_devices(arguments.folder)
    for name in arguments.devices:
        if name not in predictors:
            raise ValueError(f"no device {name!r} in {arguments.folder}; there are {', '.join(predictors) or 'none'}")
    chosen = {name: predictors[name] for name in arguments.devices or predictors}
    comparison = compare(chosen, arguments.archs, arguments.seed)
    names = comparison.devices
    table = Table("Spearman", *(Column(name, overflow="fold") for name in names))
    for name, correlations in zip(names, comparison.spearman):
        table.add_row(name, *(f"{value:.3f}" for value in correlations))
    console.print(table)
    print_stand_ins(stand_ins(chosen, arguments.seed), arguments.most_loss)
    a, b = min(combinations(range(len(names)), 2), key=lambda pair: comparison.spearman[pair])
    rows = disagreements(comparison, a, b, arguments.disagreements)
    console.print(f"Ranks (0 fastest, 1 slowest) and milliseconds on {names[a]} and {names[b]}, which agree least:")
    for row in rows:
        (rank_a, rank_b), (ms_a, ms_b) = row.ranks, row.latency_ms
        console.print(
            f"{rank_a:.2f} and {rank_b:.2f}, {ms_a:.3f} and {ms_b:.3f} ms: {row.arch.to_json()}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if arguments.plot:
        plot(comparison, a, b, rows, arguments.plot)
        console.print(f"The plot is in {arguments.plot}.")


def print_stand_ins(found: list[StandIn], most_percent: float) -> None:
    table = Table("device", "by the predictor of", "rank correlation", "its own", "loss (%)", "would do")
    for each in found:
        (low, high), (least, most) = each.spearman_interval, each.loss_interval
        table.add_row(
            each.device,
            each.predictor,
            f"{each.spearman:.3f} ({low:.3f} to {high:.3f})",
            f"{each.own_spearman:.3f}",
            f"{each.loss_percent:.1f} ({least:.1f} to {most:.1f})",
            "yes" if each.would_do(most_percent) else "",
        )
    console.print(table)
    for device in dict.fromkeys(each.device for each in found):
        best = next(each for each in found if each.device == device)
        if best.would_do(most_percent):
            verdict = f"the predictor of {best.predictor} would do"
        elif isnan(best.loss_percent):
            verdict = f"{best.measured} measurements do not tell whether another's predictor would do"
        else:
            verdict = f"no other's predictor would surely do; that of {best.predictor} comes nearest"
        console.print(f"For {device}, {verdict}.", highlight=False, markup=False, soft_wrap=True)


def plot(comparison: Comparison, a: int, b: int, marked: list[Disagreement], path: Path) -> None:
    """Latency on device `b` over latency on `a`; architectures on which they disagree are marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(comparison.latency_ms[a], comparison.latency_ms[b], s=6, label="random architectures")
    axes.scatter(*zip(*(row.latency_ms for row in marked)), s=30, marker="x", color="red", label="largest disagreement")
    axes.set_xlabel(f"{comparison.devices[a]} (ms)")
    axes.set_ylabel(f"{comparison.devices[b]} (ms)")
    axes.set_title(f"Spearman {comparison.spearman[a, b]:.3f}")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
