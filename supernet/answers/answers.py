"""A classifier's answers to labelled images, and all that is told from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.untouched import untouched

# N images, K classes, C channels, R resolution in pixels, T = min(5, K) classes that are kept of an answer

KEPT = 5
BINS = 15


class Quality(NamedTuple):
    """How well a network classifies images, each from 0 to 1."""

    top1: float  # part of the images whose label is the most probable class; higher is better
    top5: float  # whose label is among the five most probable ones (all, if there are fewer); higher is better
    calibration_error: float  # `expected_calibration_error`; lower is better


class OfClass(NamedTuple):
    """The answers about a class."""

    images: int  # whose label it is
    answered: int  # that it was the most probable class of
    right: int  # that were both

    @property
    def accuracy(self) -> float | None:
        """Part of its images that were recognised, its recall; None without images."""
        return self.right / self.images if self.images else None

    @property
    def precision(self) -> float | None:
        """Part of the answers with it that were right; None if it was never answered."""
        return self.right / self.answered if self.answered else None


class Bin(NamedTuple):
    """Answers whose confidence is above `low`, or 0, and at most `high`."""

    low: float
    high: float
    images: int
    confidence: float  # their mean; 0 without images
    accuracy: float  # part that were right; 0 without images


@dataclass(frozen=True)
class Answers:
    """The most probable classes of each image, in the order of the images."""

    labels: Tensor  # [N]
    classes: Tensor  # [N, T], the most probable one first
    probabilities: Tensor  # [N, T] of these, in float64
    num_classes: int  # K

    @cached_property
    def right(self) -> Tensor:
        """Whether the most probable class is the label [N]."""
        return self.classes[:, 0] == self.labels

    @property
    def quality(self) -> Quality:
        hit = self.classes == self.labels[:, None]
        error = expected_calibration_error(self.probabilities[:, 0], self.right)
        return Quality(self.right.double().mean().item(), hit.any(dim=1).double().mean().item(), error)

    def confusion(self) -> Tensor:
        """The number of images [K, K] of each label, a row each, that were answered with each class, a column each."""
        found = torch.zeros(self.num_classes * self.num_classes, dtype=torch.int64)
        cells = self.labels * self.num_classes + self.classes[:, 0]
        return found.index_add_(0, cells, torch.ones_like(cells)).view(self.num_classes, self.num_classes)

    def by_class(self) -> list[OfClass]:
        """Of each class, in their order."""
        confusion = self.confusion()
        counts = confusion.sum(1), confusion.sum(0), confusion.diagonal()
        return [OfClass(*own) for own in zip(*(count.tolist() for count in counts))]

    def reliability(self, bins: int = BINS) -> list[Bin]:
        """How often answers were right, by how sure they were, in `bins` equal intervals."""
        confidences = self.probabilities[:, 0]
        index = _bin_of(confidences, bins)
        found = []
        for own in range(bins):
            chosen = index == own
            images = int(chosen.sum())
            means = (values[chosen].double().mean().item() if images else 0.0 for values in (confidences, self.right))
            found.append(Bin(own / bins, (own + 1) / bins, images, *means))
        return found

    def surest_errors(self, count: int) -> list[int]:
        """The indices of at most `count` images that were answered wrongly, the surest answer first."""
        wrong = torch.where(~self.right)[0]
        order = self.probabilities[wrong, 0].argsort(descending=True, stable=True)
        return wrong[order][:count].tolist()


def answers_of(model: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> Answers:
    """The answers of `model` to images [N, C, R, R] with labels [N], which keep five classes an image in memory, and no
    image. A module runs where it is, in eval mode, any other function on the CPU. ValueError if there are no images."""
    device = torch.device("cpu")
    if isinstance(model, nn.Module):
        device = next(model.parameters(), torch.empty(0)).device
        model.eval()
    found, num_classes = [], 0
    with torch.inference_mode():
        for images, labels in batches:
            probabilities = untouched(model, images.to(device)).double().softmax(dim=1)
            num_classes = probabilities.shape[1]
            best = probabilities.topk(min(KEPT, num_classes))
            found.append((labels.cpu(), best.indices.cpu(), best.values.cpu()))
    if not found:
        raise ValueError("there are no images to evaluate on")
    return Answers(*(torch.cat(own) for own in zip(*found)), num_classes)


def quality(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Quality:
    """The `Quality` of `model`, in eval mode, on images [N, C, R, R] with labels [N]; ValueError if there are no
    images."""
    return answers_of(model, batches).quality


def expected_calibration_error(confidences: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """How far confidence is from accuracy (Guo et al., arXiv 1706.04599, equation 3), from 0 to 1, lower is better.

    sum_b n_b / N |accuracy_b - confidence_b| over `bins` equal intervals of confidence, open below and closed above.
    `confidences` [N] are the probabilities of the predicted classes, `correct` [N] whether these are right.
    """
    gaps = torch.zeros(bins, dtype=torch.float64)
    gaps.index_add_(0, _bin_of(confidences, bins), correct.double() - confidences.double())
    return (gaps.abs().sum() / len(confidences)).item()


def _bin_of(confidences: Tensor, bins: int) -> Tensor:
    return (confidences.double() * bins).ceil().long().clamp(1, bins) - 1
