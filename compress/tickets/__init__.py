"""Sparse networks: which weights are kept, and what those that are left can do."""

from compress.tickets.iterative import TicketConfig, find_ticket, rewound
from compress.tickets.masks import density_of, highest, magnitude_mask, weights_of
from compress.tickets.supermasks import growth, popup, supermask
from compress.tickets.untrained import mask_before_training, shuffled

__all__ = [
    "TicketConfig",
    "density_of",
    "find_ticket",
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
