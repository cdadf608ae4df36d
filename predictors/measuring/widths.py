"""Which numbers of channels a device likes, found by timing layers on it.

Runtimes compute channels in blocks, of 8 or 16 on most CPUs. Channels taken away save time where they empty a block,
and where what is left is no whole number of blocks, a layer may take longer than it did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from predictors.device import Device
from predictors.measuring.runtimes import prepare
from predictors.measuring.turns import turns_ms

STEPS = (1, 2, 4, 8, 16, 32)
WIDTHS = (64, 96, 128)  # whole numbers of any of these
WORTH = 0.5  # of the time that the channels had, that goes with them
LAYERS, PIXELS = 4, 14

Milliseconds = Callable[[Sequence[int]], Sequence[float]]  # of layers of so many channels, measured in turns


def liked_step(device: Device, turns: int = 20) -> int:
    """The step of numbers of channels by which convolutions of 1 x 1 become faster on `device`, measured on it in a few
    seconds; see `least_step`. Raises as `predictors.prepare` does."""

    def milliseconds(widths: Sequence[int]) -> Sequence[float]:
        timers = [prepare(_layers(width), device, (width, PIXELS, PIXELS)) for width in widths]
        return np.median(turns_ms(timers, turns, runs=5), axis=(0, 2)).tolist()

    return least_step(milliseconds)


def least_step(milliseconds: Milliseconds) -> int:
    """The least of `STEPS` that is worth taking away, and with it all larger ones: from layers of WIDTHS channels on
    both sides, so many fewer save at least half of the time that is theirs by their part of the products, by the median
    over WIDTHS. The largest if none is."""
    widths = sorted({width - step for width in WIDTHS for step in (0, *STEPS)})
    found = dict(zip(widths, milliseconds(widths), strict=True))
    liked = STEPS[-1]
    for step in reversed(STEPS):
        worth = [(1 - found[w - step] / found[w]) / (1 - ((w - step) / w) ** 2) for w in WIDTHS]
        if np.median(worth) < WORTH:
            break
        liked = step
    return liked


def _layers(width: int) -> nn.Module:
    parts = [part for _ in range(LAYERS) for part in (nn.Conv2d(width, width, 1), nn.ReLU())]
    return nn.Sequential(*parts).eval()
