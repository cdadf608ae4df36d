"""Structured pruning as published: channels by importance, one threshold for all layers, gates, what each layer bears."""

from compress.pruning.channels import prune_channels
from compress.pruning.gates import add_gates, fold_gates, train_gated
from compress.pruning.sensitivity import plot_sensitivity, sensitivity
from compress.pruning.threshold import above_threshold, global_threshold

__all__ = [
    "above_threshold",
    "add_gates",
    "fold_gates",
    "global_threshold",
    "plot_sensitivity",
    "prune_channels",
    "sensitivity",
    "train_gated",
]
