"""Which values an activation in int8 reaches from and to, by what calibration images have there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from compress.quantisation.points import Observing, layers
from distill.untouched import untouched
from supernet.calibration import Inputs, as_arguments

LEVELS = 255  # steps of 8 bits without sign
BINS = 2048  # of a histogram
CALIBRATION_IMAGES = 256  # if nothing is said

Method = Literal["extremes", "squares"]


class Range(NamedTuple):
    """The least and the largest value, at most 0 and at least 0."""

    low: float
    high: float

    @property
    def step(self) -> float:
        """The distance of neighbouring values."""
        return max((self.high - self.low) / LEVELS, torch.finfo(torch.float32).tiny)

    @property
    def zero_point(self) -> int:
        """The integer, from 0 to 255, that stands for 0."""
        return min(LEVELS, max(0, round(-self.low / self.step)))


def activation_ranges(model: nn.Module, batches: Sequence[Inputs], method: Method = "squares") -> dict[str, Range]:
    """The range of each point (`compress.quantisation.points`) of `model` in eval mode, on batches of what it takes.

    "extremes" is from the least to the largest value; "squares" cuts off what makes the mean squared error of rounding
    to 8 bits least, by a histogram of the values. Memory is that of one batch. ValueError for no batches, or where a
    value is not finite.
    """
    if not batches:
        raise ValueError("int8 is calibrated on at least one batch of images")
    extremes: dict[str, Range] = {}

    def widen(point: str, x: Tensor) -> None:
        low, high = (value.item() for value in x.float().aminmax())
        if not np.isfinite(high - low):
            raise ValueError(f"the network gives {low:g} to {high:g} at {point} on the calibration images")
        known = extremes.get(point, Range(0.0, 0.0))
        extremes[point] = Range(min(known.low, low), max(known.high, high))

    _observe(model, batches, widen)
    if method == "extremes":
        return extremes
    counts = {point: torch.zeros(BINS) for point in extremes}

    def count(point: str, x: Tensor) -> None:
        low, high = extremes[point]
        if low < high:
            counts[point] += torch.histc(x.float(), BINS, low, high).cpu()

    _observe(model, batches, count)
    return {point: least_squares(counts[point].double().numpy(), known) for point, known in extremes.items()}


def least_squares(counts: np.ndarray, extremes: Range, candidates: int = 64) -> Range:
    """The range within `extremes` of least squared error for the values in the bins `counts` [BINS] between these.

    Both ends are drawn in together in `candidates` equal parts, then each by itself.
    """
    low, high = extremes
    if low == high:
        return extremes
    edges = np.linspace(low, high, len(counts) + 1)
    values = (edges[1:] + edges[:-1]) / 2

    def error(low: float, high: float) -> float:
        step = (high - low) / LEVELS
        zero = np.round(-low / step)
        rounded = (np.clip(np.round(values / step) + zero, 0, LEVELS) - zero) * step
        return float(counts @ np.square(rounded - values))

    parts = np.arange(candidates, 0, -1) / candidates
    part = min(parts, key=lambda part: error(part * low, part * high))
    lows = parts * low if low < 0 else [0.0]
    highs = parts * high if high > 0 else [0.0]
    high = min(highs, key=lambda end: error(part * low, end)) if low < 0 < high else part * high
    low = min(lows, key=lambda end: error(end, high)) if low < 0 < high else part * low
    return Range(float(low), float(high))


def _observe(model: nn.Module, batches: Sequence[Inputs], observe) -> None:
    weights = {id(layer.weight): name for name, layer in layers(model).items()}
    with torch.no_grad():
        for batch in batches:
            with Observing(weights, observe):
                untouched(model, *as_arguments(batch))
