"""Sparse networks: which weights are kept, and what those that are left can do."""

from compress.tickets.masks import density_of, highest, magnitude_mask, weights_of

__all__ = ["density_of", "highest", "magnitude_mask", "weights_of"]
