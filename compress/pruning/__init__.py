"""Structured pruning as published: channels by importance, one threshold for all layers, what each layer bears."""

from compress.pruning.channels import prune_channels
from compress.pruning.threshold import above_threshold, global_threshold

__all__ = ["above_threshold", "global_threshold", "prune_channels"]
