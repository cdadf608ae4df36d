"""What a network is worth: the metrics of its task, a subnet's with BatchNorm statistics of its own."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill.untouched import untouched
from supernet.calibration import Inputs, Reference, calibrate, references
from supernet.space import Arch
from supernet.supernet import Supernet
from supernet.tasks import Classification, Task
from supernet.training.data import resize
from supernet.training.data.batch import Batch, on

# N images, C channels, R resolution in pixels


class Quality(NamedTuple):
    """How well a network classifies images, each from 0 to 1."""

    top1: float  # part of the images whose label is the most probable class; higher is better
    top5: float  # whose label is among the five most probable ones (all, if there are fewer); higher is better
    calibration_error: float  # `expected_calibration_error`; lower is better


def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Part of the images [N, C, R, R] whose highest logit is that of their label [N], from 0 to 1."""
    return evaluate(model, Classification(), batches)["accuracy"]


def evaluate(model: nn.Module, task: Task, batches: Iterable[Batch], arch: Arch | None = None) -> dict[str, float]:
    """The metrics of `model`, in eval mode, on batches of `task`. The model gets the inputs that the subnet `arch`
    gets; with None it gets them as they are. The batches go through one by one."""
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        moved = (on(device, batch) for batch in batches)
        pairs = ((untouched(model, *task.inputs(batch, arch)), batch) for batch in moved)
        first, second = itertools.tee(pairs)
        return task.metrics((output for output, _ in first), (batch for _, batch in second))


def calibrated_subnet(
    net: Supernet, arch: Mapping[str, Any], resolution: int, calibration_images: Tensor, batch_size: int = 256
) -> nn.Module:
    """The subnet `arch` as a plain module in eval mode, with BatchNorm statistics of its own (see `calibrated`): those
    of the calibration images, resized to `resolution`."""
    device = next(net.parameters()).device
    return calibrated(net, arch, (resize(part.to(device), resolution) for part in calibration_images.split(batch_size)))


def calibrated(net: Supernet, arch: Mapping[str, Any], batches: Iterable[Inputs]) -> nn.Module:
    """The subnet `arch` as a plain module in eval mode, its BatchNorm recalibrated on batches of images [N, C, R, R],
    or of whatever inputs it takes, a tuple for several.

    What is done depends on what the supernet's own statistics are right for (`Supernet.statistics_of`). If that is
    `arch`, it keeps them: statistics of many images in training are better than statistics of a few. If it is another,
    the largest of a pretrained supernet, that subnet runs on the images as well, and the images' statistics in `arch`
    are corrected by their statistics in that subnet (`supernet.calibration.corrected`). After training the supernet's
    statistics are right for no subnet, and `arch` gets the images' statistics as they are. `benchmarks/calibration.py`
    compares these and other ways.
    """
    model, batches = net.extract(arch).eval(), list(batches)
    if net.statistics_of != net.space.validate(arch):
        names = {layer: name for name, layer in model.named_modules()}
        calibrate(model, batches, references_of(net, known_references(net, batches), names))
    return model


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


def quality(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Quality:
    """The `Quality` of `model`, in eval mode, on images [N, C, R, R] with labels [N]; ValueError if there are no
    images."""
    device = next(model.parameters()).device
    model.eval()
    hits, confidences = [], []
    with torch.inference_mode():
        for images, labels in batches:
            probabilities = untouched(model, images.to(device)).double().softmax(dim=1)
            confidences.append(probabilities.amax(dim=1).cpu())
            best = probabilities.topk(min(5, probabilities.shape[1])).indices
            hits.append(best.cpu() == labels[:, None])
    if not hits:
        raise ValueError("there are no images to evaluate on")
    hit = torch.cat(hits)  # [N, 5] whether the label is the first, second, ... most probable class
    error = expected_calibration_error(torch.cat(confidences), hit[:, 0])
    return Quality(hit[:, 0].double().mean().item(), hit.any(dim=1).double().mean().item(), error)


def expected_calibration_error(confidences: Tensor, correct: Tensor, bins: int = 15) -> float:
    """How far confidence is from accuracy (Guo et al., arXiv 1706.04599, equation 3), from 0 to 1, lower is better.

    sum_b n_b / N |accuracy_b - confidence_b| over `bins` equal intervals of confidence, open below and closed above.
    `confidences` [N] are the probabilities of the predicted classes, `correct` [N] whether these are right.
    """
    index = (confidences.double() * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, correct.double() - confidences.double())
    return (gaps.abs().sum() / len(confidences)).item()
