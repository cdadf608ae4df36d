"""BatchNorm recalibration: giving a subnet statistics of its own.

A trained supernet's running statistics mix all its subnets, so that an extracted subnet is useless until its BatchNorm
layers have seen images (BigNAS, arXiv 2003.11142, section 3.5; Once-for-All does the same).

A pretrained supernet that was not trained on knows more: its running statistics are right for the largest subnet, which
needs no calibration. What a few images show in another subnet, they show in the largest as well, where it is known how
far that is from the truth. Correcting the one by the other (`corrected`) is the method of control variates.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distill.temporary import hooks, modes
from distill.untouched import untouched
from supernet.concurrency import at_a_time, side_by_side
from supernet.training.data.batch import device_of, joined

# B batch, C channels

Inputs = Any  # a tensor, or a tuple of all that a module is called with

BYTES_IN_CACHE = 2**20  # of the images whose moments a CPU takes at a time


class _Moments(NamedTuple):
    """Of one batch at one layer: values a channel, their mean and biased variance [C]."""

    layer: _BatchNorm
    count: int
    mean: Tensor
    variance: Tensor
    image_means: Tensor  # [B, C] those of each image
    image_variances: Tensor


class Statistics(NamedTuple):
    """What a BatchNorm layer got from some images: the number of values a channel, and their mean and biased variance,
    both in double precision; or, if they are `corrected` by a reference, its mean and variance."""

    count: int
    mean: Tensor  # [C]
    variance: Tensor  # [C]
    corrected: bool = False


class Calibrated(NamedTuple):
    """What `calibrate` found: the output for each batch, and the statistics of each BatchNorm layer."""

    outputs: list[Any]
    statistics: dict[_BatchNorm, Statistics]


class Reference(NamedTuple):
    """A BatchNorm layer of a network whose running statistics are right: these statistics, and those that the
    calibration images have in the same layer, in double precision."""

    mean: Tensor  # [C]
    variance: Tensor  # [C]
    image_means: Tensor  # [B, C]
    image_variances: Tensor  # [B, C], biased


def calibrate(
    model: nn.Module, batches: Iterable[Inputs], references: Mapping[nn.Module, Reference] = MappingProxyType({})
) -> Calibrated:
    """Replace the running statistics of every BatchNorm layer of the plain `model` by the statistics of the given
    images, or of whatever the batches hold: each batch is the input of `model`, or a tuple of several inputs.

    The outputs for the batches are those of the same layers, normalised by their biased variance, as in train mode, so
    that `model` may be a first part of a network and the outputs may calibrate the rest. There are none if there is
    nothing to calibrate.

    The result is what one forward pass in train mode over all images in a single batch would leave with momentum 1:
    each layer's mean and unbiased variance over the images, its input normalised by the statistics of the layers before
    it over *all* images. The result does not depend on how the images are split into batches. Weights and the mode of
    the model stay as they are, and dropout is off. A layer with a reference gets the reference's statistics instead,
    `corrected` by what the images have in this layer and in the reference's.

    All batches go through the model together, layer by layer: on a CPU one thread a batch, all waiting for each other
    at every BatchNorm, where as many run at a time as torch has threads, each on its share; elsewhere as one batch, of
    which there is one output. The activations of all images at one depth are in memory at once (one image of 224 pixels
    in a MobileNetV3 takes about 10 MB, of 64 pixels 1 MB); `Pooled` is for more images than there is room for.

    BatchNorm layers without running statistics are left alone, and those that no image reaches keep what they have.

    ValueError if there are no images, or so few that a layer sees a single value a channel, and if batches take
    different ways through the network, so that a layer sees some of them only.
    """
    layers = {layer: name for name, layer in model.named_modules() if keeps_statistics(layer)}
    if not layers:
        return Calibrated([], {})
    batches = list(batches)
    if not batches:
        raise ValueError("BatchNorm recalibration needs at least one batch of images")
    if device_of(batches[0]).type != "cpu":
        batches = [joined(batches)]  # which a single thread runs, see `supernet.concurrency`
    calibration = _Calibration(layers, references, len(batches), at_a_time(device_of(batches[0])))
    meeting = (layer.register_forward_pre_hook(calibration.meet) for layer in layers)
    with modes(model, lambda module: False), hooks(meeting), side_by_side(len(batches)) as pool:
        results = [pool.submit(calibration.run, model, batch, i) for i, batch in enumerate(batches)]
    errors = [error for result in results if (error := result.exception())]
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    for layer, found in calibration.found.items():
        _unbias(layer, found)
    return Calibrated([result.result() for result in results], calibration.found)


class Pooled:
    """Statistics of BatchNorm layers by chunks of images, for more images than there is memory for.

    Each chunk calibrates the network by itself, exactly (`calibrate`), and what a layer got from the chunks is pooled:
    the mean of the means, and the mean of the variances plus the variance of the means, each chunk counting by its
    values. Memory is that of one chunk, and time that of all images at once.

    So the first layer gets exactly what all images have. Behind it, a layer's input is normalised by statistics of the
    chunk in the place of those of all images, whose error falls as one over the images in a chunk, where the sampling
    error falls as the square root of one over all images. `benchmarks/calibration.py` measures how far off that is.
    """

    def __init__(self) -> None:
        self._found: dict[Hashable, Statistics] = {}

    @property
    def nbytes(self) -> int:
        return sum(found.mean.nbytes + found.variance.nbytes for found in self._found.values())

    def add(self, statistics: Mapping[Any, Statistics]) -> None:
        """Take in what the layers, or what stands for them, got from another chunk."""
        for layer, found in statistics.items():
            if layer in self._found:
                found = _pooled([self._found[layer], found])._replace(corrected=found.corrected)
            self._found[layer] = found

    def put(self, layers: Mapping[Any, _BatchNorm] | None = None) -> None:
        """Give the layers what all chunks have together; `layers` says what stood for each of them."""
        for key, found in self._found.items():
            layer = layers[key] if layers else key
            _set(layer, found)
            _unbias(layer, found)


def corrected(image_means: Tensor, image_variances: Tensor, there: Reference, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and variance [C] over all images that there are, from the calibration images' [B, C], by control variates.

    For a channel, m and v are its mean and biased variance over the calibration images here (in the layer to be
    corrected), m0 and v0 those there (in the reference), and M0 and V0 the reference's statistics. With
    g = (v + eps) / (v0 + eps)::

        corrected mean            =  m + a sqrt(g) (M0 - m0)
        corrected variance + eps  =  (v + eps) ((V0 + eps) / (v0 + eps))^b

    So if the images are brighter than most, say, or lack what a channel looks for, the error that this is known to make
    there is taken off here. The coefficients are those of least variance (Owen, *Monte Carlo theory, methods and
    examples*, section 8.9), one a layer, within 0 and 1: how an image's deviation here follows from its deviation
    there. With means x_i and mean squared deviations u_i = variance_i + (x_i - m)^2 of the images i, summed over
    channels, ::

        a  =  sum cov(x, x0) / sqrt((v + eps) (v0 + eps))  /  sum var(x0) / (v0 + eps)
        b  =  sum cov(u, u0) / ((v + eps) (v0 + eps))      /  sum var(u0) / (v0 + eps)^2

    In the reference's own network both coefficients are 1, and the result is the reference's statistics; where the
    images deviate otherwise than there, the coefficients are 0, and the result is what the images have. A variance is
    not below 0.
    """
    m, v, x, u = _deviations(image_means, image_variances)
    m0, v0, x0, u0 = _deviations(there.image_means, there.image_variances)
    scale, scale0 = v + eps, v0 + eps
    a = _slope(x / scale.sqrt(), x0 / scale0.sqrt())
    b = _slope(u / scale, u0 / scale0)
    mean = m + a * (scale / scale0).sqrt() * (there.mean - m0)
    return mean, (scale * ((there.variance + eps) / scale0) ** b - eps).clamp_min(0)


def _deviations(means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of images with these moments [B, C] the joint mean and biased variance [C], and what each has more [B, C]."""
    mean = means.mean(0)
    squares = variances + (means - mean).square()
    variance = squares.mean(0)
    return mean, variance, means - mean, squares - variance


def _slope(y: Tensor, x: Tensor) -> float:
    """The one slope within 0 and 1 by which y follows from x, [B, C] each, of mean 0 in every channel."""
    return float(((x * y).sum() / x.square().sum().clamp_min(1e-30)).clamp(0, 1))


def references(model: nn.Module, batches: Sequence[Inputs]) -> dict[str, Reference]:
    """The reference of each BatchNorm layer of `model`, by name, on batches of images; the running statistics of
    `model` are right.

    `model` is in eval mode. Batches run one after another, on a CPU as many at a time as torch has threads, so memory
    is that of a few batches. Layers that no image reaches have no reference.
    """
    layers = {layer: name for name, layer in model.named_modules() if keeps_statistics(layer)}
    found: dict[nn.Module, list[_Moments | None]] = {layer: [None] * len(batches) for layer in layers}
    current = threading.local()

    def record(layer: _BatchNorm, args: tuple[Tensor]) -> None:
        found[layer][current.index] = _moments(layer, args[0])

    def run(index: int) -> None:
        current.index = index
        with torch.no_grad():
            untouched(model, *as_arguments(batches[index]))

    with (
        hooks(layer.register_forward_pre_hook(record) for layer in layers),
        side_by_side(min(len(batches), at_a_time(device_of(batches[0])))) as pool,
    ):
        list(pool.map(run, range(len(batches))))
    return {
        layers[layer]: Reference(
            layer.running_mean.double(),
            layer.running_var.double(),
            torch.cat([m.image_means for m in moments]),
            torch.cat([m.image_variances for m in moments]),
        )
        for layer, seen in found.items()
        if (moments := [m for m in seen if m])
    }


def as_arguments(inputs: Inputs) -> tuple:
    """All that a module is called with, `inputs` being that or the only one."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


def keeps_statistics(module: nn.Module) -> bool:
    """Whether `module` is a BatchNorm layer with running statistics, as calibration replaces them."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _moments(layer: _BatchNorm, x: Tensor) -> _Moments:
    """Moments of each image are taken in single precision, then pooled in double precision.

    So they do not depend on the number of threads, are exact to 1e-7, and cost an eighth of `torch.var_mean`.
    """
    means, variances = [], []
    together = max(1, BYTES_IN_CACHE * len(x) // max(1, x.nbytes)) if x.device.type == "cpu" else len(x)
    for images in x.reshape(*x.shape[:2], -1).split(together):
        images = images.float()
        mean = images.mean(dim=2, keepdim=True)
        means.append(mean.squeeze(2))
        variances.append((images - mean).square_().mean(dim=2))
    image_means, image_variances = torch.cat(means).double(), torch.cat(variances).double()
    mean = image_means.mean(dim=0)
    variance = image_variances.mean(dim=0) + (image_means - mean).square().mean(dim=0)
    return _Moments(layer, x.numel() // x.shape[1], mean, variance, image_means, image_variances)


def _pooled(parts: Sequence[_Moments | Statistics]) -> Statistics:
    """Those of all: mean sum n_i mean_i / n and biased variance sum n_i (variance_i + (mean_i - mean)^2) / n."""
    counts = torch.tensor([part.count for part in parts], dtype=torch.float64)
    weights = (counts / counts.sum()).to(parts[0].mean.device)
    means = torch.stack([part.mean for part in parts])
    variances = torch.stack([part.variance for part in parts])
    mean = weights @ means
    return Statistics(int(counts.sum()), mean, weights @ (variances + (means - mean).square()))


def _set(layer: _BatchNorm, found: Statistics) -> None:
    layer.running_mean.copy_(found.mean)
    layer.running_var.copy_(found.variance)


def _unbias(layer: _BatchNorm, found: Statistics) -> None:
    if not found.corrected:
        layer.running_var.mul_(found.count / (found.count - 1))


class _Calibration:
    """The meeting of all batches at each BatchNorm layer, and at the end of the network."""

    def __init__(
        self, names: Mapping[_BatchNorm, str], references: Mapping[nn.Module, Reference], batches: int, at_a_time: int
    ):
        self.found: dict[_BatchNorm, Statistics] = {}
        self._names = names
        self._references = references
        self._moments: list[_Moments | None] = [None] * batches  # None at the end of the network
        self._index = threading.local()
        self._turn = threading.Semaphore(at_a_time)
        self._barrier = threading.Barrier(batches, action=self._pool)

    def run(self, model: nn.Module, batch: Inputs, index: int) -> Any:
        self._index.value = index
        try:
            with self._turn, torch.no_grad():
                output = untouched(model, *as_arguments(batch))
                self._hand_in(None)
                return output
        except BaseException:
            self._barrier.abort()
            raise

    def meet(self, layer: _BatchNorm, args: tuple[Tensor]) -> None:
        """Before `layer` runs: hand in this batch's moments, and wait until the layer has those of all batches."""
        self._hand_in(_moments(layer, args[0]))

    def _hand_in(self, moments: _Moments | None) -> None:
        self._moments[self._index.value] = moments
        self._turn.release()
        try:
            self._barrier.wait()
        finally:
            self._turn.acquire()

    def _pool(self) -> None:
        reached = {moments and moments.layer for moments in self._moments}
        if len(reached) > 1:
            name = next(self._names[layer] for layer in reached if layer)
            raise ValueError(
                f"batches of images take different ways through the network, and not all reach the BatchNorm layer "
                f"{name!r}: recalibrate on a single batch"
            )
        (layer,) = reached
        if layer is None:
            return
        found = _pooled(self._moments)
        if found.count < 2:
            raise ValueError("BatchNorm recalibration needs more than one image: a layer saw one value a channel")
        reference = self._references.get(layer)
        image_means = torch.cat([moments.image_means for moments in self._moments])
        if reference and image_means.shape == reference.image_means.shape:
            image_variances = torch.cat([moments.image_variances for moments in self._moments])
            mean, variance = corrected(image_means, image_variances, reference, layer.eps)
            found = Statistics(found.count, mean, variance, corrected=True)
        self.found[layer] = found
        _set(layer, found)
