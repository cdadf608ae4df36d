"""The neural tangent kernel's condition number, and the number of linear regions (TE-NAS, Chen et al., ICLR 2021,
arXiv 2102.11535): how well a network trains, and how much it can express, before any training.
"""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from search.activation_patterns import watch_patterns
from search.traceless import batch_statistics, hooks, modes
from search.zero_cost import WORST

# B batch, C channels, H height, W width, P weights, N units

logger = logging.getLogger(__name__)

BatchNormMode = Literal["batch", "frozen"]


def tangent_kernel(model: nn.Module, images: Tensor, batch_norm: BatchNormMode = "batch") -> Tensor:
    """The empirical neural tangent kernel K = J J^T [B, B] in float64, J_i = d(sum of the logits of image i) / dW.

    W are the weights of all layers, scales of normalisation layers included, biases left out, as in TE-NAS's code.
    With `batch_norm="batch"` the statistics of the batch depend on the weights and every image's gradient runs
    through all images, as published: B backward passes of the whole batch. With "frozen" the statistics are those of
    the batch but held fixed, which makes images independent and gives all gradients in one vectorised pass (memory
    for B P numbers either way). The model is afterwards as it was. ValueError for an unknown `batch_norm`.
    """
    if batch_norm not in ("batch", "frozen"):
        raise ValueError(f"batch_norm is 'batch' or 'frozen', not {batch_norm!r}")
    tensors = {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    weights = {name: tensors.pop(name) for name, _ in model.named_parameters() if name.endswith("weight")}
    if not weights:
        raise ValueError(f"a {type(model).__name__} has no weights to take the tangent kernel of")
    if images.dim() == 4:
        images = images.contiguous(memory_format=torch.channels_last)  # faster on CPUs
    gradients = _through_batch if batch_norm == "batch" else _with_frozen_statistics
    jacobian = gradients(model, weights, tensors, images)
    kernel = torch.zeros(len(images), len(images), dtype=torch.float64, device=images.device)
    for rows in jacobian:
        rows = rows.flatten(1).double()
        kernel.addmm_(rows, rows.T)
    return kernel


def condition_number(model: nn.Module, images: Tensor, batch_norm: BatchNormMode = "batch") -> float:
    """lambda_max / lambda_min of `tangent_kernel`; at least 1, *lower is better*.

    A kernel that is singular to float64's precision, or not finite, gives 1e30, and the log says so: a network that is
    dead, overflows or cannot tell two images apart.
    """
    kernel = tangent_kernel(model, images, batch_norm)
    if kernel.isfinite().all():
        smallest, largest = torch.linalg.eigvalsh(kernel)[[0, -1]].tolist()
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
                functional_call(model, tensors, (batch,))
            rows.append(np.packbits(torch.cat(units, dim=1).cpu().numpy(), axis=1))
    return float(len(np.unique(np.concatenate(rows), axis=0)))


def _through_batch(
    model: nn.Module, weights: dict[str, Tensor], rest: dict[str, Tensor], images: Tensor
) -> list[Tensor]:
    leaves = {name: weight.requires_grad_() for name, weight in weights.items()}
    with batch_statistics(model):
        answers = functional_call(model, {**leaves, **rest}, (images,)).flatten(1).sum(dim=1)
    values = list(leaves.values())
    rows = [torch.autograd.grad(a, values, retain_graph=True, materialize_grads=True) for a in answers]
    return [torch.stack(column) for column in zip(*rows)]


def _with_frozen_statistics(
    model: nn.Module, weights: dict[str, Tensor], rest: dict[str, Tensor], images: Tensor
) -> list[Tensor]:
    rest = {**rest, **_batch_moments(model, {**weights, **rest}, images)}

    def answer(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(model, {**weights, **rest}, (image[None],)).sum()

    with modes(model, lambda module: False):
        return list(vmap(grad(answer), in_dims=(None, 0))(weights, images).values())


def _batch_moments(model: nn.Module, tensors: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """Mean and biased variance of the batch at each BatchNorm layer, by the names of its running statistics."""
    moments = {}

    def before(name: str):
        def keep(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            if layer.running_mean is None:
                raise ValueError(f"BatchNorm layer {name!r} keeps no statistics, so that they cannot be frozen")
            dims = [0, *range(2, args[0].dim())]
            mean = args[0].mean(dims, keepdim=True)
            moments[f"{name}.running_mean"] = mean.flatten()
            moments[f"{name}.running_var"] = (args[0] - mean).square().mean(dims)  # torch.var_mean takes longer

        return keep

    layers = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    handles = (layer.register_forward_pre_hook(before(name)) for name, layer in layers.items())
    with torch.no_grad(), batch_statistics(model), hooks(handles):
        functional_call(model, {name: tensor.clone() for name, tensor in tensors.items()}, (images,))
    return moments
