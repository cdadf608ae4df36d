"""BatchNorm recalibration: giving a subnet statistics of its own.

A trained supernet's running statistics mix all its subnets, so that an extracted subnet is useless until its BatchNorm
layers have seen images (BigNAS, arXiv 2003.11142, section 3.5; Once-for-All does the same).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distill.untouched import untouched
from supernet.threads import at_a_time, side_by_side

# B batch, C channels

BYTES_IN_CACHE = 2**20  # of the images whose moments are taken at a time


class _Moments(NamedTuple):
    """Of one batch at one layer: values a channel, their mean and biased variance [C]."""

    layer: _BatchNorm
    count: int
    mean: Tensor
    variance: Tensor


def calibrate(model: nn.Module, batches: Iterable[Tensor]) -> list[Tensor]:
    """Replace the running statistics of every BatchNorm layer of the plain `model` by those of the given images.

    Returns the outputs for the batches: the same layers, normalised by their biased variance, as in train mode, so
    that `model` may be a first part of a network and the outputs may calibrate the rest. They are empty if there is
    nothing to calibrate.

    The result is what one forward pass in train mode over all images in a single batch would leave with momentum 1:
    each layer's mean and unbiased variance over the images, its input normalised by the statistics of the layers
    before it over *all* images. It does not depend on how the images are split into batches. Weights and the mode of
    the model stay as they are, and dropout is off.

    All batches go through the model together, layer by layer: one thread a batch, all waiting for each other at every
    BatchNorm. On a CPU as many run at a time as torch has threads, each on its share; elsewhere a single one. The
    activations of all images at one depth are in memory at once (one image of 224 pixels in a MobileNetV3 takes about
    10 MB, of 64 pixels 1 MB).

    BatchNorm layers without running statistics are left alone, and those that no image reaches keep what they have.

    ValueError if there are no images, or so few that a layer sees a single value a channel, and if batches take
    different ways through the network, so that a layer sees some of them only.
    """
    layers = {layer: name for name, layer in model.named_modules() if keeps_statistics(layer)}
    if not layers:
        return []
    batches = list(batches)
    if not batches:
        raise ValueError("BatchNorm recalibration needs at least one batch of images")
    modes = {module: module.training for module in model.modules()}
    calibration = _Calibration(layers, len(batches), at_a_time(batches[0].device))
    hooks = [layer.register_forward_pre_hook(calibration.meet) for layer in layers]
    model.eval()
    try:
        with side_by_side(len(batches)) as pool:
            results = [pool.submit(calibration.run, model, batch, i) for i, batch in enumerate(batches)]
        errors = [error for result in results if (error := result.exception())]
        if errors:
            raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
        for layer, count in calibration.counts.items():
            layer.running_var.mul_(count / (count - 1))
        return [result.result() for result in results]
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training


def keeps_statistics(module: nn.Module) -> bool:
    """Whether `module` is a BatchNorm layer with running statistics, as calibration replaces them."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _moments(layer: _BatchNorm, x: Tensor) -> _Moments:
    """Moments of each image are taken in single precision, then pooled in double precision.

    So they do not depend on the number of threads, are exact to 1e-7, and cost an eighth of `torch.var_mean`.
    """
    means, variances = [], []
    for images in x.reshape(*x.shape[:2], -1).split(max(1, BYTES_IN_CACHE * len(x) // max(1, x.nbytes))):
        images = images.float()
        mean = images.mean(dim=2, keepdim=True)
        means.append(mean.squeeze(2))
        variances.append((images - mean).square_().mean(dim=2))
    image_means, image_variances = torch.cat(means).double(), torch.cat(variances).double()
    mean = image_means.mean(dim=0)
    variance = image_variances.mean(dim=0) + (image_means - mean).square().mean(dim=0)
    return _Moments(layer, x.numel() // x.shape[1], mean, variance)


class _Calibration:
    """The meeting of all batches at each BatchNorm layer, and at the end of the network."""

    def __init__(self, names: Mapping[_BatchNorm, str], batches: int, at_a_time: int):
        self.counts: dict[_BatchNorm, int] = {}
        self._names = names
        self._moments: list[_Moments | None] = [None] * batches  # None at the end of the network
        self._index = threading.local()
        self._turn = threading.Semaphore(at_a_time)
        self._barrier = threading.Barrier(batches, action=self._pool)

    def run(self, model: nn.Module, batch: Tensor, index: int) -> Tensor:
        self._index.value = index
        try:
            with self._turn, torch.no_grad():
                output = untouched(model, batch)
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
        """Pooled moments: mean = sum n_i mean_i / n and variance = sum n_i (variance_i + (mean_i - mean)^2) / n."""
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
        counts = torch.tensor([moments.count for moments in self._moments], dtype=torch.float64)
        weights = (counts / counts.sum()).to(self._moments[0].mean.device)
        means = torch.stack([moments.mean for moments in self._moments])
        variances = torch.stack([moments.variance for moments in self._moments])
        mean = weights @ means
        count = int(counts.sum())
        if count < 2:
            raise ValueError("BatchNorm recalibration needs more than one image: a layer saw one value a channel")
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(weights @ (variances + (means - mean).square()))
        self.counts[layer] = count
