"""The neural tangent kernel's condition number, and the number of linear regions (TE-NAS, Chen et al., ICLR 2021,
arXiv 2102.11535): how well a network trains, and how much it can express, before any training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from distill.temporary import batch_statistics, hooks, modes
from distill.untouched import untouched
from search.untrained.activation_patterns import watch_patterns
from search.untrained.zero_cost import WORST
from supernet.calibration import Inputs, as_arguments

# B batch, C channels, H height, W width, P weights, N units

logger = logging.getLogger(__name__)

BatchNormMode = Literal["batch", "frozen"]


def tangent_kernel(model: nn.Module, inputs: Inputs, batch_norm: BatchNormMode = "batch") -> Tensor:
    """The empirical neural tangent kernel K = J J^T [B, B] in float64, J_i = d(sum of the logits of image i) / dW.

    W are the weights of all layers, scales of normalisation layers included, biases left out, as in TE-NAS's code.
    Inputs are images [B, C, H, W], tokens [B, L], or a tuple of what the model is called with.
    With `batch_norm="batch"` the statistics of the batch depend on the weights and every image's gradient runs
    through all images, as published: B backward passes of the whole batch. With "frozen" the statistics are those of
    the batch but held fixed, which makes images independent and gives all gradients in one vectorised pass (memory
    for B P numbers either way). Images and convolutions run channels last, as in training: where the model calls
    `view` on them, it has to be `reshape`. The model is afterwards as it was. ValueError for an unknown `batch_norm`,
    and if a BatchNorm layer cannot be frozen because it does not call `torch.nn.functional.batch_norm`.
    """
    if batch_norm not in ("batch", "frozen"):
        raise ValueError(f"batch_norm is 'batch' or 'frozen', not {batch_norm!r}")
    tensors = {
        name: _channels_last(tensor.detach()) for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    weights = {name: tensors.pop(name) for name, _ in model.named_parameters() if name.endswith("weight")}
    if not weights:
        raise ValueError(f"a {type(model).__name__} has no weights to take the tangent kernel of")
    inputs = tuple(map(_channels_last, as_arguments(inputs)))
    gradients = _through_batch if batch_norm == "batch" else _with_frozen_statistics
    jacobian = gradients(model, weights, tensors, inputs)
    count = len(inputs[0])
    kernel = torch.zeros(count, count, dtype=torch.float64, device=inputs[0].device)
    for rows in jacobian:
        rows = rows.flatten(1).double()
        kernel.addmm_(rows, rows.T)
    return kernel


def condition_number(model: nn.Module, inputs: Inputs, batch_norm: BatchNormMode = "batch") -> float:
    """lambda_max / lambda_min of `tangent_kernel`; at least 1, *lower is better*.

    A kernel that is singular to float64's precision, or not finite, gives 1e30, and the log says so: a network that is
    dead, overflows or cannot tell two images apart.
    """
    kernel = tangent_kernel(model, inputs, batch_norm)
    if kernel.isfinite().all():
        eigenvalues = torch.linalg.eigvalsh(kernel).tolist()
        smallest, largest = eigenvalues[0], eigenvalues[-1]  # the same of a single image
        if smallest > len(kernel) * torch.finfo(kernel.dtype).eps * largest:
            return largest / smallest
        reason = "singular"
    else:
        reason = "not finite"
    logger.warning("the neural tangent kernel is %s: the network overflows or is dead, it gets the worst score", reason)
    return -WORST


def linear_regions(model: nn.Module, images: Tensor, batch_size: int = 1000) -> float:
    """The number of distinct activation patterns among `images` [B, C, H, W], from 1 to B; *higher is better*.

    Images with the same pattern lie in the same linear region of the network, a piecewise linear function of its
    input; see `activation_patterns`. BatchNorm uses the statistics of each `batch_size` images. The count tells
    networks apart only while it is well below B: use networks and images with few units. ValueError if the network has
    no piecewise linear activation.
    """
    rows = []
    with torch.no_grad(), batch_statistics(model):
        tensors = {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
        for batch in images.split(batch_size):
            units: list[Tensor] = []
            with watch_patterns(model, units.append):
                untouched(lambda own: functional_call(model, tensors, (own,)), batch)
            rows.append(np.packbits(torch.cat(units, dim=1).cpu().numpy(), axis=1))
    return float(len(np.unique(np.concatenate(rows), axis=0)))


def _through_batch(
    model: nn.Module, weights: dict[str, Tensor], rest: dict[str, Tensor], inputs: tuple[Tensor, ...]
) -> list[Tensor]:
    leaves = {name: weight.requires_grad_() for name, weight in weights.items()}
    with batch_statistics(model):
        answers = functional_call(model, {**leaves, **rest}, inputs).flatten(1).sum(dim=1)
    values = list(leaves.values())
    rows = [torch.autograd.grad(a, values, retain_graph=True, materialize_grads=True) for a in answers]
    return [torch.stack(column) for column in zip(*rows)]


def _with_frozen_statistics(
    model: nn.Module, weights: dict[str, Tensor], rest: dict[str, Tensor], inputs: tuple[Tensor, ...]
) -> list[Tensor]:
    def answer(weights: dict[str, Tensor], example: tuple[Tensor, ...]) -> Tensor:
        return functional_call(model, {**weights, **rest}, tuple(tensor[None] for tensor in example)).sum()

    frozen = _FrozenBatchNorm()
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = (layer.register_forward_pre_hook(frozen.enter) for layer in layers)
    after = (layer.register_forward_hook(frozen.leave) for layer in layers)
    with modes(model, lambda module: False), hooks(before), hooks(after), frozen:
        return list(vmap(grad(answer), in_dims=(None, 0))(weights, inputs).values())


class _FrozenBatchNorm(TorchFunctionMode):
    """While active, under vmap, BatchNorm layers normalise by the moments of all that vmap runs over, held fixed.

    `enter` and `leave` are their hooks: others may call `batch_norm` as well, to standardise weights for example.
    """

    def __init__(self) -> None:
        super().__init__()
        self._layer: nn.Module | None = None  # that has not normalised yet

    def enter(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._layer = layer

    def leave(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if self._layer is not None:
            raise ValueError(
                f"a {type(layer).__name__} does not normalise by torch.nn.functional.batch_norm, so that its "
                "statistics cannot be frozen; take batch_norm='batch'"
            )

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None):
        if func is F.batch_norm and self._layer is not None:
            self._layer, func = None, _frozen_batch_norm
        return func(*args, **(kwargs or {}))


def _frozen_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    mean, variance = _Moments.apply(x.detach())
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias
    shape = (-1, *[1] * (x.dim() - 2))
    return x * scale.view(shape) + shift.view(shape)  # torch's own, under vmap, takes up to twice as long


class _Moments(torch.autograd.Function):
    """Mean and biased variance [C] of x [B, C, ...], and under vmap of all x together."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        dims = [0, *range(2, x.dim())]
        mean = x.mean(dims, keepdim=True)
        return mean.flatten(), (x - mean).square().mean(dims)  # torch.var_mean takes longer

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        """Nothing is kept: there is no gradient."""

    @staticmethod
    def vmap(info: object, in_dims: tuple[int], x: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[None, None]]:
        return _Moments.apply(x.movedim(in_dims[0], 0).flatten(0, 1)), (None, None)


def _channels_last(tensor: Tensor) -> Tensor:
    """A copy whose channels, if it has positions, lie side by side in memory: faster on CPUs."""
    return tensor.clone(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor.clone()
