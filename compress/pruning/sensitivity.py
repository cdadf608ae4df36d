"""What each layer bears: accuracy with a part of its channels gone, of all other layers none (Li et al., arXiv
1608.08710, figure 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from supernet.artifacts.atomic import write_atomically
from supernet.channels import narrow, trace
from supernet.channels.importance import Importance, channel_scores, order_channels
from supernet.families.traced.kept_sizes import keep_sizes
from supernet.skeleton import copy_to

FRACTIONS = tuple(tenths / 10 for tenths in range(10))


class PrunedLayer(NamedTuple):
    """A network with one layer pruned, and not trained again."""

    layer: str  # that puts the channels out, the first of those that share them
    fraction: float  # of its channels that are gone
    kept: int
    score: float  # what `evaluate` gives


def sensitivity(
    model: nn.Module,
    example: Tensor,
    evaluate: Callable[[nn.Module], float],
    fractions: Sequence[float] = FRACTIONS,
    importance: Importance | Mapping[str, Tensor] = "l1",
) -> list[PrunedLayer]:
    """For the channels of each layer and each of the `fractions`, how well `model` does without that part of them, the
    least important, by `evaluate`, which gets a plain module in eval mode. `importance` is as in
    `supernet.channels.importance.order_channels`.

    Channels that other layers share go there as well. One stays at least. `evaluate` is called once for all fractions
    that take nothing away. `model` stays as it is; images are like `example` [B, C, H, W].
    """
    channels = trace(model, example).channels
    scores = channel_scores(model, channels, importance) if isinstance(importance, str) else importance
    whole = evaluate(model)
    rows = []
    for group in channels:
        if group.name not in scores:
            continue
        for fraction in fractions:
            kept = max(1, group.size - round(fraction * group.size))
            score = whole
            if kept < group.size:
                smaller = copy_to(model, next(model.parameters(), torch.empty(0)).device).eval()
                order_channels(smaller, [group], scores)
                score = evaluate(keep_sizes(smaller, lambda m, kept=kept, group=group: narrow(m, {group: kept})))
            rows.append(PrunedLayer(group.name, fraction, kept, score))
    return rows


def plot_sensitivity(path: str | Path, rows: Sequence[PrunedLayer], what: str = "accuracy") -> None:
    """Write an SVG of the scores against the fraction that is gone, a line a layer; the most sensitive, by the mean of
    its scores, is named first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[PrunedLayer]] = {}
    for row in rows:
        lines.setdefault(row.layer, []).append(row)
    by_mean = sorted(lines.items(), key=lambda item: sum(row.score for row in item[1]) / len(item[1]))
    for index, (layer, own) in enumerate(by_mean):
        style = ("-", "--", ":", "-.")[index % 4]
        axes.plot([100 * row.fraction for row in own], [row.score for row in own], style, marker=".", label=layer)
    axes.set_xlabel("channels of the layer that are gone (%)")
    axes.set_ylabel(f"{what}, not trained again")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6, ncols=max(1, len(lines) // 12))
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
