"""A network with exits as parts that run one after another, and what each takes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from exits.network import Exits
from predictors.device import Device
from predictors.measuring.runtimes import prepare
from search.prefix.dependence import layer_names, split
from search.prefix.pieces import cut

# E exits

HERE = Device("here", "torch")


class Part(nn.Module):
    """What runs up to an exit from the one before: of what is carried on, the logits and what is carried on from
    there."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, carried: Tensor) -> tuple[Tensor, Tensor]:
        carried = self.body(carried)
        return self.head(carried), carried


def exits_kept(count: int, kept: Sequence[int] | None) -> tuple[int, ...]:
    """`kept`, or all of `count` exits if None; ValueError unless it is some of these in their order."""
    kept = tuple(range(count) if kept is None else kept)
    if list(kept) != sorted(set(kept)) or not kept or not 0 <= kept[0] <= kept[-1] < count:
        raise ValueError(f"exits are kept in order, of 0 to {count - 1}, not {kept}")
    return kept


def parts_of(network: Exits, kept: Sequence[int] | None = None) -> list[nn.Module]:
    """The parts of a network, in eval mode: a `Part` for each exit but the last, and what gives the last's logits.

    With `kept`, exits counted from 0, the others are left out, and the network ends at the last one that is kept. The
    parts have the network's weights, not a copy. ValueError where more than one tensor is carried on after a module
    that an exit comes after.
    """
    network.eval()
    kept = exits_kept(len(network.after) + 1, kept)
    bodies = _bodies(network, [exit for exit in kept if exit < len(network.after)])
    heads = [network.heads[exit] for exit in kept if exit < len(network.after)]
    parts: list[nn.Module] = [Part(body, head) for body, head in zip(bodies, heads)]
    if len(network.after) in kept:
        return [*parts, bodies[-1]]
    return [*parts[:-1], nn.Sequential(bodies[len(heads) - 1], heads[-1])]


def _bodies(network: Exits, exits: Sequence[int]) -> list[nn.Module]:
    """The network between the modules that these exits come after, and behind the last."""
    pieces = cut(network.model)
    names = layer_names(network.model, pieces)
    found = split(names, [network.after[exit] for exit in exits])
    for exit, part in zip(exits, found):
        if not f"{names[part.stop - 1][-1]}.".startswith(f"{network.after[exit]}."):
            raise cannot_part(network.after[exit])
    bounds = [0, *(part.stop for part in found), len(pieces)]
    return [nn.Sequential(*pieces[start:stop]) for start, stop in pairwise(bounds)]


def cannot_part(name: str) -> ValueError:
    """Why an exit after the module `name` ends no part."""
    return ValueError(f"what follows on {name!r} cannot be parted from it: have the network exit after a whole block")


class Latencies(NamedTuple):
    """What the parts take, apart from each other, in milliseconds."""

    bodies_ms: tuple[float, ...]  # from one exit to the next [E]; the last with the network's own head
    heads_ms: tuple[float, ...]  # the heads of all exits but the last [E - 1]


def measure_parts(network: Exits, example: tuple, device: Device = HERE, rounds: int = 15, runs: int = 3) -> Latencies:
    """The median time of each body and of each head on `device`, for inputs like `example`, of one tensor. In every
    round each of them runs `runs` times in turn, so that all see the same machine. Of a text these are its tokens [1,
    T], without a mask, since a text of its own is not filled up. ValueError as `parts_of`, and as
    `predictors.prepare`."""
    network.eval()
    bodies, timers = _bodies(network, range(len(network.after))), []
    (carried,) = (torch.zeros(tensor.shape, dtype=tensor.dtype) for tensor in example)
    heads = [*network.heads, None]
    with torch.no_grad():
        for body, head in zip(bodies, heads):
            timers.append(prepare(body, device, (carried,)))
            carried = body(carried)
            timers.append(None if head is None else prepare(head, device, (carried,)))
    times: list[list[float]] = [[] for _ in timers]
    for _ in range(rounds):
        for timer, own in zip(timers, times):
            if timer is not None:
                own += list(timer(runs))
    medians = [float(np.median(own)) if own else 0.0 for own in times]
    return Latencies(tuple(medians[::2]), tuple(medians[1:-1:2]))


def cumulative_ms(latencies: Latencies, kept: Sequence[int] | None = None) -> np.ndarray:
    """What it takes to leave at each of the exits `kept`, in milliseconds: all bodies up to it and the heads of those
    that are kept up to it."""
    kept = exits_kept(len(latencies.bodies_ms), kept)
    heads_ms = [*latencies.heads_ms, 0.0]
    bodies = np.cumsum(latencies.bodies_ms)
    return np.array([bodies[exit] + sum(heads_ms[other] for other in kept if other <= exit) for exit in kept])
