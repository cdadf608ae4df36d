"""What holds a network back on a device: compute, bandwidth, overhead, memory or flash.

Each layer, as it runs once deployed (`supernet.operations.fuse`), takes no less than its multiply-accumulates at the
device's peak, and no less than the bytes that it moves at the device's bandwidth (`compress.roofline`); the larger of
the two says what bounds it, unless what every operation takes whatever it does is larger still.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from compress.roofline import Roofline
from supernet.activation_memory import peak_activation_bytes
from supernet.artifacts.deployment import deployed
from supernet.costs import stored_bytes
from supernet.operations import Operation, Operations, operations

COMPUTE, BANDWIDTH, OVERHEAD, MEMORY, FLASH = "compute", "bandwidth", "overhead", "memory", "flash"
LIMITS = {"activation_bytes": MEMORY, "stored_bytes": FLASH, "latency_ms": "time"}


@dataclass(frozen=True)
class LayerCost:
    """One layer with what runs as part of it."""

    name: str
    kind: str
    macs: int
    moved_bytes: float
    weight_bytes: float  # of these
    compute_ms: float
    transfer_ms: float
    overhead_ms: float

    @property
    def bound_ms(self) -> float:
        """No run takes less."""
        return max(self.compute_ms, self.transfer_ms)

    @property
    def estimate_ms(self) -> float:
        """What it takes if nothing but peak, bandwidth and overhead counts."""
        return self.bound_ms + self.overhead_ms

    @property
    def bound_by(self) -> str:
        if self.overhead_ms > self.bound_ms:
            return OVERHEAD
        return COMPUTE if self.compute_ms >= self.transfer_ms else BANDWIDTH

    @property
    def intensity(self) -> float:
        """Floating-point operations, two for a MAC, for each byte moved."""
        return 2 * self.macs / self.moved_bytes if self.moved_bytes else 0.0


@dataclass(frozen=True)
class Diagnosis:
    """What a network costs on a device, layer by layer and in all."""

    layers: tuple[LayerCost, ...]
    roofline: Roofline
    bits: int
    activation_bytes: int  # at their peak, as deployed
    eager_activation_bytes: int  # the same in PyTorch, in single precision
    stored_bytes: int
    peak_layers: tuple[str, ...]  # the layers that make what is alive at the peak
    limits: Mapping[str, float]

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def bound_ms(self) -> float:
        """A run takes no less than this."""
        return sum(layer.bound_ms for layer in self.layers)

    @property
    def estimate_ms(self) -> float:
        return sum(layer.estimate_ms for layer in self.layers)

    @property
    def shares(self) -> dict[str, float]:
        """Which part of the estimate is bound by compute, by bandwidth, and overhead, that of all layers."""
        parts = dict.fromkeys((COMPUTE, BANDWIDTH, OVERHEAD), 0.0)
        for layer in self.layers:
            parts[OVERHEAD] += layer.overhead_ms
            parts[COMPUTE if layer.compute_ms >= layer.transfer_ms else BANDWIDTH] += layer.bound_ms
        return {name: part / max(self.estimate_ms, 1e-12) for name, part in parts.items()}

    def value(self, limit: str) -> float:
        """What is limited by that name of `LIMITS`; of the latency, the estimate."""
        return self.estimate_ms if limit == "latency_ms" else getattr(self, limit)

    @property
    def exceeded(self) -> dict[str, float]:
        """How many times each limit that is not kept is exceeded, the worst first."""
        ratios = {name: self.value(name) / limit for name, limit in self.limits.items()}
        return dict(sorted(((n, r) for n, r in ratios.items() if r > 1), key=lambda item: -item[1]))

    @property
    def bottlenecks(self) -> tuple[str, ...]:
        """What holds the network back, the worst first: memory and flash that it exceeds, then what its time goes
        into most, and that before both where the latency exceeds its limit by more."""
        slowest = max(self.shares, key=self.shares.__getitem__)
        found = [slowest if LIMITS[name] == "time" else LIMITS[name] for name in self.exceeded]
        return tuple(dict.fromkeys([*found, slowest]))


def diagnose(
    model: nn.Module,
    example: Sequence[int] | tuple,
    roofline: Roofline,
    bits: int = 32,
    limits: Mapping[str, float] | None = None,
    fused: bool = True,
) -> Diagnosis:
    """What holds `model` back on a device of that roofline, for an image of the size `example`, [C, H, W], or inputs
    like those in the tuple `example`, with weights and activations of `bits` each.

    `limits` are the largest admissible `activation_bytes`, `stored_bytes` and `latency_ms`. Without `fused` the device
    runs BatchNorm, activations and sums as operations of their own, as PyTorch does. ValueError for another limit, or
    one that is not positive, or if `model` does not run.
    """
    for name, limit in (limits or {}).items():
        if name not in LIMITS:
            raise ValueError(f"there is no limit {name!r} to a diagnosis; there are {', '.join(LIMITS)}")
        if not limit > 0:
            raise ValueError(f"the limit on {name} is {limit}, but only a positive one can be met")
    merged = deployed(model)
    found = operations(merged, example, fused=fused)
    sizes = [sum(found.buffer_bytes(buffer, bits) for buffer in alive) for alive in found.alive()]
    return Diagnosis(
        tuple(_cost(operation, roofline, bits) for operation in found.operations),
        roofline,
        bits,
        peak_activation_bytes(merged, example, bits, fused=True),
        peak_activation_bytes(model, example),
        stored_bytes(merged, bits),
        _makers(found, sizes.index(max(sizes))),
        dict(limits or {}),
    )


def _cost(operation: Operation, roofline: Roofline, bits: int) -> LayerCost:
    moved = operation.bytes_moved(bits)
    times = roofline.compute_ms(operation.macs), roofline.transfer_ms(moved), roofline.overhead_ms
    return LayerCost(operation.layer, operation.kind, operation.macs, moved, operation.weights * bits / 8, *times)


def _makers(found: Operations, peak: int) -> tuple[str, ...]:
    """The layers that make what is alive as the operation `peak` runs, and its own."""
    alive = found.alive()[peak]
    layers = [o.layer for o in found.operations[: peak + 1] if any(buffer in alive for buffer in o.writes)]
    return tuple(dict.fromkeys(layers))
