"""What follows from a diagnosis: changes that relieve what holds a network back, why, and what each would bring.

What it would bring is computed: the changed network is built without weights and diagnosed as the first one was. What
it would cost in accuracy is for training and a search to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from compress.diagnosis import BANDWIDTH, COMPUTE, FLASH, MEMORY, OVERHEAD, Diagnosis, diagnose
from supernet.channels import Channels, trace
from supernet.costs import stored_bytes
from supernet.errors import first_line
from supernet.families.traced.models import from_model
from supernet.skeleton import copy_to

# [C, H, W] channels, height, width

WIDTHS, DEPTHS = (0.5, 0.75, 1.0), (0.75, 1.0)
RESOLUTION = 0.75
CODEBOOK_BITS = 4
BATCH = 8


@dataclass(frozen=True)
class Advice:
    """A change, and the diagnosis of what it makes of the network."""

    change: str
    reason: str
    relieves: tuple[str, ...]  # what of `compress.diagnosis` it is against
    estimate_ms: float  # for one example
    activation_bytes: int
    stored_bytes: int


CHANGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "resolution": (
        "activations and multiply-accumulates fall with its square, weights stay",
        (MEMORY, COMPUTE, BANDWIDTH),
    ),
    "early width": ("activations are largest where the image is: only the layers at the peak set it", (MEMORY,)),
    "width": (
        "multiply-accumulates and weights fall with its square, activations with it",
        (COMPUTE, FLASH, BANDWIDTH),
    ),
    "late width": ("most weights are in few layers, which see few pixels", (FLASH, BANDWIDTH)),
    "depth": ("whole blocks save their time, their overhead and their weights", (COMPUTE, OVERHEAD, FLASH, BANDWIDTH)),
    "int8": (
        "a number takes a byte, on the way and where it lies; its products are taken to be as fast as before",
        (MEMORY, BANDWIDTH, FLASH),
    ),
    "codebooks": ("weights are stored as indices into a table by layer; they run as they are", (FLASH,)),
    "fusion": ("BatchNorm, activations and sums run as part of the layers before them", (OVERHEAD, BANDWIDTH)),
    "batches": (
        "what an operation takes whatever it does, and its weights, are for all of a batch",
        (OVERHEAD, BANDWIDTH),
    ),
}


def advise(
    model: nn.Module, example: Sequence[int] | tuple, diagnosis: Diagnosis, fused: bool = True
) -> tuple[list[Advice], list[str]]:
    """Changes against the bottlenecks of `diagnosis`, which `diagnose(model, example, ...)` gave, those first that
    bring most against the worst one; and a line on each kind of change that could not be computed.

    A change of the resolution is for images alone. `model` stays as it is.
    """
    found: list[Advice] = []
    problems: list[str] = []
    again = partial(diagnose, roofline=diagnosis.roofline, bits=diagnosis.bits, fused=fused)
    for name, change, outcome in _outcomes(model, example, diagnosis, again, problems):
        reason, relieves = CHANGES[name]
        if set(relieves) & set(diagnosis.bottlenecks):
            found.append(Advice(change, reason, relieves, *outcome))
    worst = diagnosis.bottlenecks[0]
    place = {MEMORY: lambda a: a.activation_bytes, FLASH: lambda a: a.stored_bytes}.get(worst, lambda a: a.estimate_ms)
    return sorted(found, key=place), problems


Outcome = tuple[float, int, int]  # estimate_ms, activation_bytes, stored_bytes


def _outcomes(
    model: nn.Module,
    example: Sequence[int] | tuple,
    diagnosis: Diagnosis,
    again: Callable[..., Diagnosis],
    problems: list[str],
) -> Iterator[tuple[str, str, Outcome]]:
    """The name of a change, what it is here, and what it makes of the network."""
    own = _outcome(diagnosis)
    if diagnosis.bits > 8:
        yield "int8", "int8 weights and activations", _outcome(again(model, example, bits=8))
    if diagnosis.bits > CODEBOOK_BITS:
        coded = stored_bytes(model, CODEBOOK_BITS)
        yield "codebooks", f"codebooks of {CODEBOOK_BITS} bits", (own[0], own[1], coded)
    if again.keywords["fused"] is False:
        yield "fusion", "a runtime that fuses", _outcome(again(model, example, fused=True))
    yield "batches", f"batches of {BATCH}", (_batched_ms(diagnosis, BATCH), BATCH * own[1], own[2])
    if (smaller := _smaller_image(example)) is not None:
        try:
            change = f"images of {smaller[-1]} instead of {_size(example)[-1]} pixels"
            yield "resolution", change, _outcome(again(model, smaller))
        except ValueError as error:
            problems.append(f"the resolution: {first_line(error)}")
    try:
        yield from _narrower(model, example, diagnosis, again)
    except ValueError as error:
        problems.append(f"widths and depths: {first_line(error)}")


def _narrower(
    model: nn.Module, example: Sequence[int] | tuple, diagnosis: Diagnosis, again: Callable[..., Diagnosis]
) -> Iterator[tuple[str, str, Outcome]]:
    """Subnets of the model itself, whose widths and depths `supernet train --recipe prune` would search."""
    size = _size(example)
    if size is None:
        raise ValueError("they vary in networks of images alone")
    on_meta = copy_to(model, torch.device("meta"))
    family = from_model(
        partial(copy_to, on_meta, torch.device("meta")), torch.empty(1, *size, device="meta"), WIDTHS, DEPTHS
    )
    choices = family.space.choices

    def outcome(values: Mapping[str, object]) -> Outcome:
        arch = family.space.restrict({name: [value] for name, value in values.items()}).largest
        with torch.device("meta"):
            return _outcome(again(family.build(arch), example))

    groups = trace(on_meta, torch.empty(1, *size, device="meta")).channels
    widths = [name for name in choices if name.endswith("width")]
    depths = {name: choices[name].values[0] for name in choices if name.endswith("depth")}
    if widths:
        yield "width", "all widths at three quarters", outcome({name: choices[name].values[-2] for name in widths})
    for name, layers, where in (
        ("early width", diagnosis.peak_layers, "where activations are largest"),
        ("late width", _heaviest(on_meta), "where most weights are"),
    ):
        if own := [width for width in _put_out_by(layers, groups) if width in widths]:
            change = f"half the width of {_few(own)}, {where}"
            yield name, change, outcome({width: choices[width].values[0] for width in own})
    if depths:
        yield "depth", "a quarter of the blocks fewer", outcome(depths)


def _put_out_by(layers: Sequence[str], groups: Iterable[Channels]) -> list[str]:
    """The choices of width of the channels that these layers put out."""
    weights = {f"{layer}.weight" for layer in layers}
    return [f"{group.name}.width" for group in groups if any(m.tensor in weights and m.dim == 0 for m in group.members)]


def _heaviest(model: nn.Module, part: float = 0.5) -> list[str]:
    """The fewest layers that have so much of the parameters."""
    sizes = {name.rpartition(".")[0]: p.numel() for name, p in model.named_parameters() if p.dim() > 1}
    heaviest, total = [], 0
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        if total >= part * sum(sizes.values()):
            break
        heaviest.append(name)
        total += sizes[name]
    return heaviest


def _batched_ms(diagnosis: Diagnosis, batch: int) -> float:
    """Milliseconds of an example where so many run at once; the weights are read once for all of them."""
    total = 0.0
    for layer in diagnosis.layers:
        moved = layer.moved_bytes - layer.weight_bytes + layer.weight_bytes / batch
        total += (
            max(layer.compute_ms, diagnosis.roofline.transfer_ms(batch * moved) / batch) + layer.overhead_ms / batch
        )
    return total


def _outcome(diagnosis: Diagnosis) -> Outcome:
    return diagnosis.estimate_ms, diagnosis.activation_bytes, diagnosis.stored_bytes


def _size(example: Sequence[int] | tuple) -> tuple[int, ...] | None:
    """[C, H, W] of an image; None for other inputs."""
    if all(isinstance(size, int) for size in example):
        return tuple(example)
    first = example[0] if len(example) == 1 else None
    return tuple(first.shape[1:]) if isinstance(first, Tensor) and first.dim() == 4 else None


def _smaller_image(example: Sequence[int] | tuple) -> tuple[int, ...] | None:
    """About three quarters of the side, in steps of 32 pixels, or of 8 below 128."""
    size = _size(example)
    if size is None or size[-1] < 16:
        return None
    step = 32 if size[-1] >= 128 else 8
    side = max(int(RESOLUTION * size[-1] / step) * step, step)
    return (size[0], side * size[1] // size[2], side)


def _few(names: Sequence[str], most: int = 2) -> str:
    shown = [name.removesuffix(".width") for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")
