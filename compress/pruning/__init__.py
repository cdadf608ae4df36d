"""Structured pruning as published: by importance, by one threshold for all layers, by gates."""

from compress.pruning.channels import prune_channels
from compress.pruning.gates import add_gates, fold_gates, train_gated
from compress.pruning.threshold import above_threshold, global_threshold

__all__ = ["above_threshold", "add_gates", "fold_gates", "global_threshold", "prune_channels", "train_gated"]
