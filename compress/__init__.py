"""Networks smaller in bytes and bits: what is made of their weights, and what a device's limits leave of it."""

from compress.allocation import allocate
from compress.transforms import Binary, Bits, Codebook, Mask, Ternary, fold, transformed

__all__ = ["Binary", "Bits", "Codebook", "Mask", "Ternary", "allocate", "fold", "transformed"]
