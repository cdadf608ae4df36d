"""Scoring architectures by the supernet: take the subnet out, give BatchNorm its own statistics, count right answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from supernet.calibration import calibrate
from supernet.data import resize
from supernet.evaluation import accuracy
from supernet.space import Arch
from supernet.supernet import Supernet

# N images, C channels, R resolution in pixels


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
    """The score "accuracy of the subnet, from 0 to 1, with BatchNorm statistics of its own".

    `images(resolution)` are those to calibrate and to judge by, `resolution(arch)` is that of an architecture.
    """

    def __init__(
        self,
        net: Supernet,
        images: Callable[[int], EvaluationImages],
        resolution: Callable[[Arch], int],
        batch_size: int = 256,
    ) -> None:
        self.net = net
        self.images = images
        self.resolution = resolution
        self.batch_size = batch_size

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        return [self._accuracy(arch) for arch in archs]

    def _accuracy(self, arch: Arch) -> float:
        calibration, images, labels = self.images(self.resolution(arch))
        model = self.net.extract(arch).eval()
        calibrate(model, calibration.split(self.batch_size))
        return accuracy(model, images, labels, self.batch_size)
