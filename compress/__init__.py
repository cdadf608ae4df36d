"""Networks smaller in bytes and bits: what is made of their weights, and what a device's limits leave of it."""

from compress.allocation import allocate
from compress.codebooks import clustered
from compress.container import load_compressed, save_compressed
from compress.transforms import Binary, Bits, Codebook, Mask, Ternary, fold, transformed

__all__ = [
    "Binary",
    "Bits",
    "Codebook",
    "Mask",
    "Ternary",
    "allocate",
    "clustered",
    "fold",
    "load_compressed",
    "save_compressed",
    "transformed",
]
