"""Sparse networks: which weights are kept, and what those that are left can do."""

from compress.tickets.growing import GrowConfig, grow_and_prune, growth
from compress.tickets.iterative import TicketConfig, find_ticket, rewound
from compress.tickets.masks import density_of, highest, magnitude_mask, weights_of
from compress.tickets.structured import channel_masks
from compress.tickets.supermasks import popup, supermask
from compress.tickets.untrained import mask_before_training, shuffled

__all__ = [
    "GrowConfig",
    "TicketConfig",
    "channel_masks",
    "density_of",
    "find_ticket",
    "grow_and_prune",
    "growth",
    "highest",
    "magnitude_mask",
    "mask_before_training",
    "popup",
    "rewound",
    "shuffled",
    "supermask",
    "weights_of",
]
