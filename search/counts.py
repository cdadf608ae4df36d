"""Costs of architectures that are counted and not measured, by the names that limits and objectives go by.

`activation_bytes` is the peak of PyTorch's eager mode in single precision; with a precision behind a dot, as in
`activation_bytes.int8`, that of a deployed network in which BatchNorm and activations are fused. `stored_bytes` is in
single precision, and `stored_bytes.int8` with weights of 8 bits. `bit_operations` and `weight_bytes` are counted by the
families whose layers choose their bits (`supernet.families.mixed_precision`).
"""

from __future__ import annotations

from predictors.activation_memory import peak_activation
from predictors.device import BITS
from predictors.stored_bytes import stored
from search.problem import Cost
from supernet.families import Family

OF_BITS = ("bit_operations", "weight_bytes")
COUNTS = ("macs", "parameters", "activation_bytes", "stored_bytes", *OF_BITS)


def is_count(name: str) -> bool:
    """Whether a cost of this name is a number of something, and no latency."""
    what, _, precision = name.partition(".")
    return what in COUNTS and (not precision or (what in ("activation_bytes", "stored_bytes") and precision in BITS))


def count(name: str, family: Family) -> Cost:
    """The cost of that name, for which `is_count` holds; ValueError if it is one that `family` does not count."""
    what, _, precision = name.partition(".")
    if what == "macs":
        return lambda archs: [family.macs(arch) for arch in archs]
    if what == "parameters":
        return lambda archs: [family.parameters(arch) for arch in archs]
    if what in OF_BITS:
        if what not in family.counts:
            raise ValueError(f"{what} is of spaces whose layers choose their bits, such as mixed_precision: limit macs")
        return lambda archs: [family.counts[what](arch) for arch in archs]
    bits = BITS[precision or "fp32"]
    if what == "stored_bytes":
        return stored(family.build, bits)
    return peak_activation(family.build, family.example, bits, fused=bool(precision))
