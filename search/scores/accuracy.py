"""Scoring architectures by the supernet: the accuracy of the subnet with BatchNorm statistics of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from search.prefix import trie
from supernet.space import Arch
from supernet.supernet import Supernet
from supernet.training.data import resize

# N images, C channels, R resolution in pixels, K classes


class EvaluationImages(NamedTuple):
    """What subnets are calibrated and judged on, at one resolution."""

    calibration: Tensor  # [N, C, R, R]
    images: Tensor  # [N, C, R, R]
    labels: Tensor  # [N]


def resized(calibration: Tensor, images: Tensor, labels: Tensor) -> Callable[[int], EvaluationImages]:
    """The same images at any resolution."""

    def at(resolution: int) -> EvaluationImages:
        return EvaluationImages(resize(calibration, resolution), resize(images, resolution), labels)

    return at


class SupernetAccuracy:
    """The score "accuracy of the subnet, with BatchNorm statistics of its own", from 0 to 1.

    NaN if a logit is not finite.

    `images(resolution)` are those to calibrate and to judge by, `resolution(arch)` is that of an architecture. The
    value of an architecture does not depend on the others that it is evaluated with; on `batch_size` it may, by
    rounding. Memory format and device are those of `net`. What shared first layers make of the images is kept for later
    calls, in up to `memory_bytes`, until the weights change.
    """

    def __init__(
        self,
        net: Supernet,
        images: Callable[[int], EvaluationImages],
        resolution: Callable[[Arch], int],
        batch_size: int = 500,
        memory_bytes: int = 2**31,
    ) -> None:
        self.net = net
        self.images = images
        self.resolution = resolution
        self.batch_size = batch_size
        self._remembered = trie.Remembered(memory_bytes)
        self._version = -1

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        """The accuracies in the order of `archs`; raises what evaluating one of them raises."""
        accuracies = dict(self.each(archs))
        for value in accuracies.values():
            if isinstance(value, Exception):
                raise value
        return [accuracies[index] for index in range(len(archs))]

    def each(self, archs: Sequence[Arch]) -> Iterator[tuple[int, float | Exception]]:
        """The index and the accuracy of each architecture, or what evaluating it raised, as soon as it is known."""
        labels = {size: self.images(size).labels for size in {self.resolution(arch) for arch in archs}}
        version = sum(tensor._version for tensor in self.net.state_dict(keep_vars=True).values())
        if version != self._version:
            self._remembered.clear()
            self._version = version
        for index, logits in trie.evaluate(self.net, archs, self._batches, self.resolution, self._remembered):
            if isinstance(logits, Exception):
                yield index, logits
            else:
                yield index, accuracy(logits, labels[self.resolution(archs[index])])

    def _batches(self, resolution: int) -> trie.Batches:
        device = next(self.net.parameters()).device
        calibration, images, _ = self.images(resolution)
        return trie.Batches(*(list(part.to(device).split(self.batch_size)) for part in (calibration, images)))


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Part of the logits [N, K] that are highest at their label [N]; NaN if one is not finite."""
    if not logits.isfinite().all():
        return float("nan")
    return float((logits.argmax(dim=1).cpu() == labels.cpu()).float().mean())
