"""Measuring the roofline of a device: by its own runtime, on layers that suit it, as the best of many runs.

Data sheets promise what no runtime attains, and what else runs on the machine can only slow it down.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from compress.roofline import Roofline
from predictors.device import Device
from predictors.measuring.runtimes import Timer, check, prepare

# C channels, H height, W width

CONVOLUTIONS = ((64, 56, 3), (128, 28, 3), (256, 28, 1), (512, 14, 1))  # C, H = W, kernel size
PRODUCTS = (512, 1024)  # of square matrices
WORKING_SETS = (2**14, 2**17, 2**20, 2**23, 2**26)  # bytes that one operation reads and writes
LARGEST_WEIGHT = 2**23  # bytes of a matrix that is read
CHAIN = 16  # operations one after another
REPEATS = 4
ROUNDS = 4
VISIT_MS, VISIT_RUNS = 20.0, 16  # of a round: no longer and no more than this, but for a first run


def measure_roofline(device: Device, progress: Callable[[int, int], object] = lambda done, total: None) -> Roofline:
    """The roofline of `device`, which is this machine; some ten seconds.

    Peak: the best of convolutions and products of matrices that are large and dense. Bandwidth: of functions of each
    number of a vector, and of products of matrices with a vector, at each of `WORKING_SETS`. Overhead: of convolutions
    of a single number. What a runtime takes once a run is left out: each is the difference of a long and a short chain,
    but for peaks and products, whose layers are long.

    ValueError as `runtimes.prepare` raises it.
    """
    check(device)
    device = dataclasses.replace(device, batch_size=1)
    timers: list[tuple[str, int, float, Timer]] = []

    def add(what: str, size: int, amount: float, module: nn.Module, *example: int) -> None:
        timers.append((what, size, amount, prepare(module, device, example)))

    for channels, side, kernel_size in CONVOLUTIONS:
        layers = [nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2) for _ in range(REPEATS)]
        macs = REPEATS * channels**2 * kernel_size**2 * side**2
        add("peak", 0, macs, nn.Sequential(*layers), channels, side, side)
    for size in PRODUCTS:
        layers = [nn.Linear(size, size, bias=False) for _ in range(REPEATS)]
        add("peak", 0, REPEATS * size**3, nn.Sequential(*layers), 1, size, size)
    for moved in WORKING_SETS:
        for length in (CHAIN, 2 * CHAIN):
            add("move", moved, length, _Chain(length), moved // 8)
        if moved <= LARGEST_WEIGHT:
            side = int((moved * 8 / device.bits) ** 0.5)
            layers = [nn.Linear(side, side, bias=False) for _ in range(REPEATS)]
            add("read", moved, REPEATS * side**2 * device.bits / 8, nn.Sequential(*layers), 1, side)
    for length in (CHAIN, 4 * CHAIN):
        add("overhead", 0, length, nn.Sequential(*(nn.Conv2d(1, 1, 1) for _ in range(length))), 1, 1, 1)
    best_ms = [float("inf")] * len(timers)
    for done in range(ROUNDS * len(timers)):
        index = done % len(timers)
        timer = timers[index][3]
        first_ms = float(timer(1)[0])
        more = timer(min(VISIT_RUNS, 1 + int(VISIT_MS / first_ms)))
        best_ms[index] = min(best_ms[index], first_ms, float(more.min()))
        progress(done + 1, ROUNDS * len(timers))
    return _from_times([(what, size, amount, ms) for (what, size, amount, _), ms in zip(timers, best_ms)])


def _from_times(rows: list[tuple[str, int, float, float]]) -> Roofline:
    """The roofline of what was measured: what, the bytes that an operation moves, the work done, and milliseconds."""
    peak = max(1e3 * macs / ms for what, _, macs, ms in rows if what == "peak")
    rates: dict[int, float] = {}
    for moved in WORKING_SETS:
        (short, first_ms), (long, second_ms) = (
            (n, ms) for what, size, n, ms in rows if (what, size) == ("move", moved)
        )
        found = [1e3 * amount / ms for what, size, amount, ms in rows if (what, size) == ("read", moved)]
        if second_ms > first_ms:
            # a chain takes no less than its share of the long one's time, however the two were disturbed
            found.append(
                1e3 * (long - short) * moved / max(second_ms - first_ms, (long - short) / long * second_ms / 2)
            )
        rates[moved] = max(found)
    (short, first_ms), (long, second_ms) = ((n, ms) for what, _, n, ms in rows if what == "overhead")
    return Roofline(peak, rates, max(second_ms - first_ms, 0.0) / (long - short))


class _Chain(nn.Module):
    """So many functions of each number, which no runtime puts together or leaves out."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length

    def forward(self, x: Tensor) -> Tensor:
        for index in range(self._length):
            x = torch.neg(x) if index % 2 else torch.relu(x)
        return x
