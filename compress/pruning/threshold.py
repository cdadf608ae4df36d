"""One threshold of importance for the channels of all layers (network slimming, Liu et al., arXiv 1708.06519).

The published threshold is a quantile, and may leave a layer without any channel; here every layer has a floor, and the
threshold may be the lowest that meets limits on costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor


def above_threshold(
    scores: Mapping[str, Tensor], threshold: float, floors: Mapping[str, int] | None = None
) -> dict[str, int]:
    """How many channels of each layer have a score above `threshold`; at least its floor, or 1, and no more than there
    are."""
    floors = floors or {}
    return {
        name: max(int((score > threshold).sum()), min(floors.get(name, 1), len(score)))
        for name, score in scores.items()
    }


def quantile_threshold(scores: Mapping[str, Tensor], fraction: float) -> float:
    """The threshold that the least important `fraction` of the channels of all layers together does not exceed: of n
    scores in order, the round(n * fraction)-th; below all of them for none. ValueError unless it is from 0 to 1."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"the fraction of channels to prune is from 0 to 1, not {fraction}")
    every = _sorted(scores)
    count = round(len(every) * fraction)
    return float(every[count - 1]) if count else -math.inf


def global_threshold(scores: Mapping[str, Tensor], is_admissible: Callable[[float], bool]) -> float | None:
    """The lowest threshold that is admissible, by bisection over the scores of all channels: fewer channels are taken
    to be admissible wherever more are. None if not even the floors of all layers are."""
    thresholds = [-math.inf, *dict.fromkeys(_sorted(scores).tolist())]
    low, high = 0, len(thresholds) - 1
    if not is_admissible(thresholds[high]):
        return None
    while low < high:
        middle = (low + high) // 2
        if is_admissible(thresholds[middle]):
            high = middle
        else:
            low = middle + 1
    return thresholds[low]


def _sorted(scores: Mapping[str, Tensor]) -> np.ndarray:
    return np.sort(np.concatenate([score.double().cpu().numpy() for score in scores.values()]))
