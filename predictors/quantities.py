"""What is measured of an architecture on a device, and predicted: its latency, and further costs."""

from __future__ import annotations

LATENCY = "latency_ms"
ENERGY = "energy_mj"
PEAK_MEMORY = "peak_memory_bytes"
FURTHER = (ENERGY, PEAK_MEMORY)
NOUNS = {LATENCY: "latency", ENERGY: "energy", PEAK_MEMORY: "peak memory"}
UNITS = {LATENCY: "ms", ENERGY: "mJ", PEAK_MEMORY: "bytes"}
UNITS_SPELT = {LATENCY: "milliseconds", ENERGY: "millijoules", PEAK_MEMORY: "bytes"}
SEPARATOR = ":"  # no device's name has one


def check_quantity(name: str) -> str:
    """`name`; ValueError if nothing of that name is measured."""
    if name not in UNITS:
        raise ValueError(f"no quantity {name!r} is measured; there are {', '.join(UNITS)}")
    return name


def cost_name(device: str, quantity: str) -> str:
    """What a search calls the `quantity` on the device of that name: the device's name alone for its latency, in
    milliseconds, and phone:energy_mj, phone:peak_memory_bytes for others."""
    return device if quantity == LATENCY else f"{device}{SEPARATOR}{quantity}"
