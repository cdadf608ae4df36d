"""How much each weight of a network matters before it was trained, from one batch: pure functions on a plain module.

Higher matters more. The module runs in the mode that it is in (`distill.temporary.batch_statistics`), and is left as
it was. W are the weights of convolutions and linear layers, g = dL/dW, and L is the mean cross-entropy of the logits
[..., K] on the labels [...]. Inputs are images [B, C, H, W], tokens [B, L], or a tuple of what the module is called
with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from supernet.calibration import Inputs, as_arguments

# B batch, C channels, H height, W width, L length in tokens, K classes

Weights = dict[str, Tensor]  # by name, as are their scores

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def snip(model: nn.Module, inputs: Inputs, labels: Tensor) -> Weights:
    """|W g|: how much the loss depends on each connection (SNIP: Lee et al., ICLR 2019, arXiv 1810.02340)."""
    weights, gradients = weights_and_gradients(model, inputs, labels)
    return {name: (weight * gradients[name]).abs() for name, weight in weights.items()}


def grasp(model: nn.Module, inputs: Inputs, labels: Tensor, *, temperature: float = 200.0) -> Weights:
    """W (H g), H the Hessian of L: how much of the squared norm of g is lost without the weight, to first order, halved
    (GraSP: Wang et al., ICLR 2020, arXiv 2002.07376, where the sign is the other).

    Logits are divided by the `temperature`, 200 as in the authors' code.
    """
    weights, rest = copies(model)
    with _TwiceDifferentiable(), sdpa_kernel(SDPBackend.MATH):  # fused attention has one derivative alone
        logits = functional_call(model, {**weights, **rest}, as_arguments(inputs))
        loss = cross_entropy(logits / temperature, labels)
    gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True, materialize_grads=True)
    flow = torch.stack([(g.detach() * g).sum() for g in gradients]).sum()
    products = torch.autograd.grad(flow, list(weights.values()), materialize_grads=True)  # H g
    return {name: weight.detach() * product for (name, weight), product in zip(weights.items(), products)}


def synflow(model: nn.Module, inputs: Inputs, labels: Tensor | None = None) -> Weights:
    """|W dR/dW|, in float64, R the sum of the outputs for one input of ones with all weights and biases replaced by
    their magnitudes, normalisation layers passed by and ReLU6 unbounded, so that R is the product of the layers'
    magnitudes (SynFlow: Tanaka et al., NeurIPS 2020, arXiv 2006.05467).

    Of inputs that are no whole numbers, only the shape counts; of tokens it is the first example.
    """
    weights, rest = copies(model, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    biases = {name for name, _ in model.named_parameters()} - weights.keys()
    weights = {name: weight.detach().abs().requires_grad_() for name, weight in weights.items()}
    rest = {name: tensor.abs() if name in biases else tensor for name, tensor in rest.items()}
    ones = tree_map(lambda x: torch.ones_like(x[:1], dtype=torch.float64) if x.is_floating_point() else x[:1], inputs)
    with _without_norms(model), _Unbounded():
        flow = functional_call(model, {**weights, **rest}, as_arguments(ones)).sum()
    gradients = torch.autograd.grad(flow, list(weights.values()), materialize_grads=True)
    return {name: (weight.detach() * g).abs() for (name, weight), g in zip(weights.items(), gradients)}


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The convolutions and linear layers by name; ValueError if there is none."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _ConvNd | nn.Linear)}
    if not layers:
        raise ValueError(f"a {type(model).__name__} has no convolution and no linear layer to score")
    return layers


def copies(
    model: nn.Module, change: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> tuple[Weights, dict[str, Tensor]]:
    """Copies of the weights of `layers_of`, which ask for gradients, and of all else, for `functional_call`."""
    names = {f"{name}.weight".removeprefix(".") for name in layers_of(model)}
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    weights = {name: change(tensors[name].detach()).clone().requires_grad_() for name in tensors if name in names}
    rest = {name: change(tensor.detach()).clone() for name, tensor in tensors.items() if name not in names}
    return weights, rest


def weights_and_gradients(model: nn.Module, inputs: Inputs, labels: Tensor) -> tuple[Weights, Weights]:
    """W and g."""
    weights, rest = copies(model)
    loss = cross_entropy(functional_call(model, {**weights, **rest}, as_arguments(inputs)), labels)
    gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
    return {name: weight.detach() for name, weight in weights.items()}, dict(zip(weights, gradients))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """L. ValueError if there is not a label for each of the logits."""
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"the network gives {list(logits.shape)}, and labels are {list(labels.shape)}: one for each")
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


class _Unbounded(TorchFunctionMode):
    """While active, nothing bounds activations from above: ReLU6 and Hardtanh are ReLU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (F.relu6, F.hardtanh):
            return F.relu(args[0])
        return func(*args, **(kwargs or {}))


class _TwiceDifferentiable(TorchFunctionMode):
    """While active, activations that torch can differentiate only once are computed by others that it can twice."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.hardsigmoid:
            return F.relu6(args[0] + 3) / 6
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _without_norms(model: nn.Module) -> Iterator[None]:
    """While the context lasts, normalisation layers pass their input on, and timm's fused ones activate it."""
    norms = [module for module in model.modules() if isinstance(module, _NORMS)]
    try:
        for module in norms:
            module.forward = module.act.forward if hasattr(module, "act") else _pass_on
        yield
    finally:
        for module in norms:
            module.__dict__.pop("forward", None)


def _pass_on(x: Tensor) -> Tensor:
    return x
