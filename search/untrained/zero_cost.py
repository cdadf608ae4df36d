"""Scores of untrained networks, computed from one batch of examples: pure functions on a plain module.

Every score takes `(model, inputs, labels)`, images [B, C, H, W] and labels [B], and returns a finite float: *higher is
better*. Inputs may be tokens [B, L] as well, or a tuple of what the network is called with, and labels [...] those of
logits [..., K]; `jacob_cov` and `zen_score` need images. A score does not change the model: weights, buffers,
gradients, modes and hooks are afterwards what they were, whatever happens. Dropout and stochastic depth are off;
BatchNorm uses the statistics of the batch, unless said otherwise. A network that overflows or is dead gets the score
`WORST`, and the log says so.

W are the weights of convolutions and linear layers (no biases, no BatchNorm), L is the mean cross-entropy on the labels
and g = dL/dW. grad_norm, plain, snip, grasp, fisher, synflow and jacob_cov are as Abdelfattah et al. (arXiv 2101.08134,
section 3) and their code use them to rank architectures.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from compress.tickets import saliency
from compress.tickets.saliency import copies, layers_of, weights_and_gradients
from distill.temporary import batch_statistics, hooks
from distill.untouched import untouched
from search.untrained.activation_patterns import watch_patterns
from supernet.calibration import Inputs, as_arguments

# B batch, C channels, H height, W width, O output channels of a layer

logger = logging.getLogger(__name__)

WORST = -1e30
"""The score of a network that cannot be scored: below all others, and yet a number."""


def _score(function: Callable[..., Tensor]) -> Callable[..., float]:
    """Run `function` with batch statistics and without dropout, give a finite float, and leave the model as it was."""

    @functools.wraps(function)
    def score(model: nn.Module, inputs: Inputs, labels: Tensor | None = None, **settings) -> float:
        if isinstance(inputs, Tensor) and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)  # twice as fast on CPUs
        with batch_statistics(model):
            value = float(untouched(lambda own: function(model, own, labels, **settings), inputs))
        if math.isfinite(value):
            return value
        logger.warning("%s is %s: the network overflows or is dead, it gets the worst score", function.__name__, value)
        return WORST

    return score


@_score
def grad_norm(model: nn.Module, inputs: Inputs, labels: Tensor) -> Tensor:
    """sum over layers of ||g||_2."""
    _, gradients = weights_and_gradients(model, inputs, labels)
    return torch.stack([gradient.norm() for gradient in gradients.values()]).sum()


@_score
def plain(model: nn.Module, inputs: Inputs, labels: Tensor) -> Tensor:
    """sum W g: the first-order change of the loss when all weights vanish, with the sign turned (Mozer & Smolensky)."""
    weights, gradients = weights_and_gradients(model, inputs, labels)
    return torch.stack([(weights[name] * gradients[name]).sum() for name in weights]).sum()


@_score
def snip(model: nn.Module, inputs: Inputs, labels: Tensor) -> Tensor:
    """sum |W g|: how much the loss depends on each connection (Lee et al., arXiv 1810.02340)."""
    return _total(saliency.snip(model, inputs, labels))


@_score
def grasp(model: nn.Module, inputs: Inputs, labels: Tensor) -> Tensor:
    """-sum W (H g), H the Hessian of L: how much the gradient's flow depends on each connection (arXiv 2002.07376)."""
    return -_total(saliency.grasp(model, inputs, labels, temperature=1.0))


@_score
def fisher(model: nn.Module, inputs: Inputs, labels: Tensor) -> Tensor:
    """sum over layers and channels of I_O * 1/2 mean_B (sum of a dL/da over positions)^2 (Theis et al., 1801.05787).

    a are the outputs of a layer, and I_O the number of weights of an output channel: every weight has the Fisher
    information of its channel.
    """
    weights, rest = copies(model)
    outputs: list[tuple[nn.Module, Tensor]] = []

    def keep(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        outputs.append((layer, output))
        return output.clone()  # what follows may work in place

    with hooks(layer.register_forward_hook(keep) for layer in layers_of(model).values()):
        loss = saliency.cross_entropy(functional_call(model, {**weights, **rest}, as_arguments(inputs)), labels)
    gradients = torch.autograd.grad(loss, [output for _, output in outputs], materialize_grads=True)
    information = [
        _by_channel(layer, output.detach() * gradient).sum(dim=1).square().mean(dim=0).sum() / 2
        for (layer, output), gradient in zip(outputs, gradients)
    ]
    return sum(value * layer.weight[0].numel() for (layer, _), value in zip(outputs, information))


@_score
def synflow(model: nn.Module, inputs: Inputs, labels: Tensor | None = None) -> Tensor:
    """sum |W dR/dW|, R the sum of the outputs for an image of ones with all weights and biases replaced by their
    magnitudes, in float64, with normalisation layers passed by and ReLU6 unbounded, since there R is to be the product
    of the layers' magnitudes (Tanaka et al., arXiv 2006.05467).

    Of images only the shape counts; of tokens it is the first example. Weights and biases of normalisation layers play
    no part.
    """
    return _total(saliency.synflow(model, inputs))


@_score
def jacob_cov(model: nn.Module, inputs: Inputs, labels: Tensor | None = None) -> Tensor:
    """-sum_i (log(l_i + k) + 1 / (l_i + k)), k = 1e-5, l_i the eigenvalues of the correlation matrix [B, B] of the
    images' input gradients d(sum of logits)/dx (Mellor et al., arXiv 2006.04647 version 1).

    High where the network answers to different images in different directions.
    """
    images = _images(inputs, "jacob_cov, which takes gradients by them,").detach().clone().requires_grad_()
    weights, rest = copies(model)
    outputs = untouched(lambda own: functional_call(model, {**weights, **rest}, (own,)), images)
    (jacobian,) = torch.autograd.grad(outputs.sum(), images)
    correlation = torch.corrcoef(jacobian.flatten(1).double())
    if not correlation.isfinite().all():
        return correlation.new_tensor(math.nan)
    shifted = torch.linalg.eigvalsh(correlation).clamp(min=0) + 1e-5
    return -(shifted.log() + 1 / shifted).sum()


@_score
def naswot(model: nn.Module, inputs: Inputs, labels: Tensor | None = None) -> Tensor:
    """log |det K| of K_ij = the number of ReLUs that are both on or both off for images i and j (arXiv 2006.04647).

    High where images fall into different linear regions. Counts every piecewise linear activation, see
    `activation_patterns`; ValueError if there is none. Two images with the same pattern make K singular.
    """
    first = as_arguments(inputs)[0]
    kernel = torch.zeros(len(first), len(first), dtype=torch.float64, device=first.device)

    def agree(pattern: Tensor) -> None:
        on = pattern.float()
        kernel.add_(on @ on.T + (1 - on) @ (1 - on).T)

    weights, rest = copies(model)
    with torch.no_grad(), watch_patterns(model, agree):
        functional_call(model, {**weights, **rest}, as_arguments(inputs))
    return torch.linalg.slogdet(kernel).logabsdet


@_score
def zen_score(
    model: nn.Module,
    inputs: Inputs,
    labels: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
    step: float = 0.01,
    repeats: int = 1,
) -> Tensor:
    """Zen-score: log mean_B ||f(x) - f(x + step e)||_F + sum over BatchNorm layers of log sqrt(mean_C var) (Lin et al.,
    arXiv 2102.01063, algorithm 1), mean over `repeats` draws of weights, x and e, all standard normal.

    f are the features before global pooling, that is the last input of a layer with more than one position. var is
    the variance of the layer's input over the batch; layers whose input is constant, behind an edge that is cut, are
    left out. Of `images` only the shape counts. `generator` is a CPU generator; without one, the draw is always the
    same.
    """
    generator = generator or torch.Generator().manual_seed(0)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    images = _images(inputs, "zen_score, which puts noise in their place,")
    weights, rest = copies(model)
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.affine:
            rest |= {f"{name}.weight": torch.ones_like(module.weight), f"{name}.bias": torch.zeros_like(module.bias)}
    scores = []
    for _ in range(repeats):
        tensors = rest | {name: normal(weight) for name, weight in weights.items()}
        x = normal(images)
        with torch.no_grad():
            before, variances = _features_and_variances(model, tensors, x)
            after, _ = _features_and_variances(model, tensors, x + step * normal(images))
        change = (before - after).flatten(1).norm(dim=1).mean()
        scores.append(change.log() + sum(variance.log() / 2 for variance in variances if variance > 0))
    return torch.stack(scores).mean()


SCORES: dict[str, Callable[..., float]] = {
    "grad_norm": grad_norm,
    "plain": plain,
    "snip": snip,
    "grasp": grasp,
    "fisher": fisher,
    "synflow": synflow,
    "jacob_cov": jacob_cov,
    "naswot": naswot,
    "zen_score": zen_score,
}


def _images(inputs: Inputs, what: str) -> Tensor:
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        return inputs
    raise ValueError(f"{what} needs images, and the network takes tokens: leave it out")


def _total(scores: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([score.sum() for score in scores.values()]).sum()


def _by_channel(layer: nn.Module, output: Tensor) -> Tensor:
    """A layer's output as [B, positions, O]: channels come second in convolutions, last in linear layers."""
    if isinstance(layer, _ConvNd):
        return output.flatten(2).transpose(1, 2)
    return output.reshape(len(output), -1, output.shape[-1])


def _features_and_variances(
    model: nn.Module, tensors: Mapping[str, Tensor], images: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The features before global pooling, and the mean variance over channels at the input of each BatchNorm layer."""
    features, variances = [images], []

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args and isinstance(x := args[0], Tensor):
            if x.dim() > 2 and x.shape[2:].numel() > 1:
                features[0] = x
            if isinstance(module, _BatchNorm):
                variances.append(x.var(dim=[0, *range(2, x.dim())], correction=0).mean())

    # timm's fused normalisation layers have children
    layers = (m for m in model.modules() if isinstance(m, _BatchNorm) or not any(True for _ in m.children()))
    with hooks(layer.register_forward_pre_hook(before) for layer in layers):
        untouched(lambda own: functional_call(model, tensors, (own,)), images)
    return features[0], variances
