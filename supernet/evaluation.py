"""What a network is worth: the metrics of its task, a subnet's with BatchNorm statistics of its own."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distill.untouched import untouched
from supernet.activation_memory import examples_within
from supernet.calibration import Inputs, Pooled, Reference, calibrate, keeps_statistics, references
from supernet.space import Arch
from supernet.supernet import Supernet
from supernet.tasks import Classification, Task
from supernet.training.data import resize
from supernet.training.data.batch import Batch, in_chunks, on

# N images, C channels, R resolution in pixels

CALIBRATION_BYTES = 2**33
"""What the activations of the images that BatchNorm is recalibrated on may take at once, if nothing is said: 8 GiB."""
FEWEST = 64
"""Images that BatchNorm is recalibrated on at once, at least, whatever they take."""


def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Part of the images [N, C, R, R] whose highest logit is that of their label [N], from 0 to 1."""
    return evaluate(model, Classification(), batches)["accuracy"]


def evaluate(model: nn.Module, task: Task, batches: Iterable[Batch], arch: Arch | None = None) -> dict[str, float]:
    """The metrics of `model`, in eval mode, on batches of `task`. The model gets the inputs that the subnet `arch`
    gets; with None it gets them as they are. The batches go through one by one."""
    device = next(model.parameters(), torch.empty(0)).device
    model.eval()
    with torch.inference_mode():
        moved = (on(device, batch) for batch in batches)
        pairs = ((untouched(model, *task.inputs(batch, arch)), batch) for batch in moved)
        first, second = itertools.tee(pairs)
        return task.metrics((output for output, _ in first), (batch for _, batch in second))


def calibrated_subnet(
    net: Supernet,
    arch: Mapping[str, Any],
    resolution: int,
    calibration_images: Tensor,
    batch_size: int = 256,
    calibration_bytes: int = CALIBRATION_BYTES,
) -> nn.Module:
    """The subnet `arch` as a plain module in eval mode, with BatchNorm statistics of its own (see `calibrated`): those
    of the calibration images, resized to `resolution`."""
    device = next(net.parameters()).device
    batches = (resize(part.to(device), resolution) for part in calibration_images.split(batch_size))
    return calibrated(net, arch, batches, calibration_bytes)


def calibrated(
    net: Supernet,
    arch: Mapping[str, Any],
    batches: Iterable[Inputs],
    calibration_bytes: int = CALIBRATION_BYTES,
) -> nn.Module:
    """The subnet `arch` as a plain module in eval mode, its BatchNorm recalibrated on batches of images [N, C, R, R],
    or of whatever inputs it takes, a tuple for several.

    What is done depends on what the supernet's own statistics are right for (`Supernet.statistics_of`). If that is
    `arch`, it keeps them: statistics of many images in training are better than statistics of a few. If it is another,
    the largest of a pretrained supernet, that subnet runs on the images as well, and the images' statistics in `arch`
    are corrected by their statistics in that subnet (`supernet.calibration.corrected`). After training the supernet's
    statistics are right for no subnet, and `arch` gets the images' statistics as they are. `benchmarks/calibration.py`
    compares these and other ways.

    The result is exact if the activations of all images in the largest subnet are within `calibration_bytes`. If not,
    the images go through in chunks of as many as are, and at least `FEWEST`, and the statistics of the chunks are
    pooled (`supernet.calibration.Pooled`): memory is that of two chunks' images and of one chunk's activations, however
    many images there are, and values are a little other ones.
    """
    model = net.extract(arch).eval()
    if net.statistics_of != net.space.validate(arch) and any(map(keeps_statistics, model.modules())):
        names = {layer: name for name, layer in model.named_modules()}
        pooled = Pooled()
        for chunk in calibration_chunks(net, batches, calibration_bytes):
            known = references_of(net, known_references(net, chunk), names)
            pooled.add(calibrate(model, chunk, known).statistics)
        pooled.put()
    return model


def calibration_chunks(
    net: Supernet, batches: Iterable[Inputs], calibration_bytes: int = CALIBRATION_BYTES
) -> Iterator[list[Inputs]]:
    """`batches` in the chunks in which `calibrated` takes them: all in one if their activations are within
    `calibration_bytes`."""
    batches = iter(batches)
    first = list(itertools.islice(batches, 1))
    most = examples_within(net, first[0], calibration_bytes) if first else None
    return in_chunks(itertools.chain(first, batches), None if most is None else max(most, FEWEST))


def known_references(net: Supernet, batches: Sequence[Inputs]) -> dict[str, Reference]:
    """By name, the references of the BatchNorm layers of the subnet that the supernet's statistics are right for, on
    batches of images, as `calibrated` takes them. Empty if there is no such subnet; layers that have their statistics
    in common have no reference."""
    if net.statistics_of is None:
        return {}
    found = references(net.extract(net.statistics_of).eval(), batches)
    count = Counter(net.sources(net.statistics_of).values())
    return {name: reference for name, reference in found.items() if count[f"{name}.running_mean"] == 1}


def references_of(
    net: Supernet, known: Mapping[str, Reference], names: Mapping[nn.Module, str]
) -> dict[nn.Module, Reference]:
    """The parts of `known` that belong to a subnet's layers, whose names in the supernet are `names`."""
    found = {}
    for layer, name in names.items():
        if name in known:
            channels = torch.arange(len(known[name].mean), device=known[name].mean.device)
            own = net.part_of(channels, f"{name}.running_mean", layer.running_mean.shape)
            found[layer] = Reference(*(tensor[..., own] for tensor in known[name]))
    return found
