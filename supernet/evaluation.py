"""What a network is worth: its accuracy and calibration, a subnet's with BatchNorm statistics of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill.untouched import untouched
from supernet.calibration import calibrate
from supernet.data import resize
from supernet.supernet import Supernet

# N images, C channels, R resolution in pixels


class Quality(NamedTuple):
    """How well a network classifies images, each from 0 to 1."""

    top1: float  # part of the images whose label is the most probable class; higher is better
    top5: float  # whose label is among the five most probable ones (all, if there are fewer); higher is better
    calibration_error: float  # `expected_calibration_error`; lower is better


def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Part of the images [N, C, R, R] whose highest logit is that of their label [N], from 0 to 1."""
    device = next(model.parameters()).device
    model.eval()
    correct = count = 0
    with torch.inference_mode():
        for images, labels in batches:
            correct += (untouched(model, images.to(device)).argmax(1).cpu() == labels).sum().item()
            count += len(labels)
    return correct / count


def calibrated_subnet(
    net: Supernet, arch: Mapping[str, Any], resolution: int, calibration_images: Tensor, batch_size: int = 256
) -> nn.Module:
    """The subnet `arch` as a plain module in eval mode, with BatchNorm statistics of its own (see `calibrated`): those
    of the calibration images, resized to `resolution`."""
    device = next(net.parameters()).device
    return calibrated(net, arch, (resize(part.to(device), resolution) for part in calibration_images.split(batch_size)))


def calibrated(net: Supernet, arch: Mapping[str, Any], batches: Iterable[Tensor]) -> nn.Module:
    """The subnet `arch` as a plain module in eval mode, its BatchNorm recalibrated on batches of images [N, C, R, R].

    If the supernet's own statistics are right for it (`Supernet.statistics_of`) it keeps them: those of many images in
    training are better than any of a few (`benchmarks/calibration.py`).
    """
    model = net.extract(arch).eval()
    if net.statistics_of != net.space.validate(arch):
        calibrate(model, batches)
    return model


def quality(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Quality:
    """Of `model` in eval mode on images [N, C, R, R] with labels [N]; ValueError if there are none."""
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
