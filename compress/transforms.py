"""What is made of a weight before a layer uses it: zeros, fewer bits, entries of a codebook, signs.

A transform is a value: a frozen dataclass that is hashable and that maps a tensor to one of the same shape, leaving its
argument as it is. A family's `views` give it to subnets' tensors (`supernet.views.View`); `transformed` puts it on the
tensors of any module. The optimizer sees the raw tensor and the layer what was made of it, so that neither momentum nor
weight decay undoes a mask, and checkpoints, averages of weights and resuming need not know of any.

Roundings have the gradient of the identity where they do not clip, which is the straight-through estimator (Bengio,
Léonard and Courville, arXiv 1308.3432).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from supernet.views import Transform

# O output channels of a weight [O, ...]: the channels that a scale each is for


@dataclass(frozen=True)
class Mask:
    """Zero where `kept`, a boolean tensor, is False; as it is, with its gradient, elsewhere.

    Masks are equal if they keep the same. ValueError if `kept` is no boolean tensor, and when called, if the weight is
    of another shape.
    """

    kept: Tensor = field(compare=False, repr=False)
    digest: str = field(init=False)
    _placed: dict[torch.device, Tensor] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.kept.dtype != torch.bool:
            raise ValueError(f"a mask keeps or does not: give it a boolean tensor, not one of {self.kept.dtype}")
        kept = self.kept.detach().cpu().contiguous().clone()
        digest = hashlib.sha256(repr(tuple(kept.shape)).encode() + kept.numpy().tobytes()).hexdigest()
        for name, value in {"kept": kept, "digest": digest, "_placed": {kept.device: kept}}.items():
            object.__setattr__(self, name, value)

    def __call__(self, weight: Tensor) -> Tensor:
        if weight.shape != self.kept.shape:
            raise ValueError(f"a mask {tuple(self.kept.shape)} does not fit a weight {tuple(weight.shape)}")
        if weight.device not in self._placed:
            self._placed[weight.device] = self.kept.to(weight.device)
        return torch.where(self._placed[weight.device], weight, 0)

    @property
    def density(self) -> float:
        """The part of the entries that is kept."""
        return self.kept.sum().item() / self.kept.numel()


@dataclass(frozen=True)
class Bits:
    """The nearest of the 2^`bits` - 1 multiples q s of a step s, |q| <= 2^(`bits` - 1) - 1, that reach to the largest
    absolute value: symmetric uniform quantisation, with a step for each output channel, or one for all.

    ValueError unless `bits` is from 2 to 16; one bit is `Binary`.
    """

    bits: int
    per_channel: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(f"weights are rounded to 2 to 16 bits, not to {self.bits}; Binary() is one bit")

    def __call__(self, weight: Tensor) -> Tensor:
        step, largest = self.step(weight.detach()), 2 ** (self.bits - 1) - 1
        zeros = torch.zeros_like(step, dtype=torch.int32)
        if step.ndim:
            return torch.fake_quantize_per_channel_affine(weight, step, zeros, 0, -largest, largest)
        return torch.fake_quantize_per_tensor_affine(weight, step, zeros, -largest, largest)

    def step(self, weight: Tensor) -> Tensor:
        """The distance of neighbouring values: of each output channel [O], or one [] for all, as for a vector."""
        absolute = weight.abs()
        largest = absolute.flatten(1).amax(1) if self.per_channel and weight.ndim > 1 else absolute.amax()
        return (largest / (2 ** (self.bits - 1) - 1)).clamp(min=torch.finfo(weight.dtype).tiny)


@dataclass(frozen=True)
class Codebook:
    """The nearest of `centroids`, the lower of two that are as near; its gradient passes straight through.

    ValueError for no centroids, or for such as do not ascend.
    """

    centroids: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.centroids or list(self.centroids) != sorted(set(self.centroids)):
            raise ValueError(f"a codebook has ascending centroids, not {self.centroids}")

    def __call__(self, weight: Tensor) -> Tensor:
        centroids = torch.tensor(self.centroids, dtype=weight.dtype, device=weight.device)
        return straight_through(weight, centroids[self.indices(weight)])

    def indices(self, weight: Tensor) -> Tensor:
        """Which centroid stands for each entry; integers from 0 in the shape of `weight`."""
        centroids = torch.tensor(self.centroids, dtype=weight.dtype, device=weight.device)
        return torch.bucketize(weight.detach(), (centroids[1:] + centroids[:-1]) / 2)


@dataclass(frozen=True)
class Binary:
    """a sign(w), where 0 counts as positive, with the gradient of the identity where |w| <= 1 and none beyond.

    The scale a is 1 (BinaryConnect: Courbariaux et al., NeurIPS 2015), or with `scale` "mean" the mean of |w| over each
    output channel (binary-weight networks: Rastegari et al., ECCV 2016, equation 6), whose own gradient is not taken.
    """

    scale: Literal["one", "mean"] = "mean"

    def __post_init__(self) -> None:
        if self.scale not in ("one", "mean"):
            raise ValueError(f"the scale of binary weights is 'one' or 'mean', not {self.scale!r}")

    def __call__(self, weight: Tensor) -> Tensor:
        signs = torch.where(weight.detach() >= 0, 1.0, -1.0).to(weight.dtype)
        scale = _channel_mean(weight.detach().abs()) if self.scale == "mean" else 1.0
        within = torch.where(weight.detach().abs() <= 1, weight, weight.detach())
        return straight_through(within, scale * signs)


@dataclass(frozen=True)
class Ternary:
    """a sign(w) where |w| exceeds `threshold` times the mean of |w|, else 0; a is the mean of those |w| that exceed it.

    Mean, threshold and a are those of an output channel; the gradient passes straight through. Ternary weight networks
    (Li et al., arXiv 1605.04711) have 0.7 as `threshold`, near what is best for normally distributed weights.
    """

    threshold: float = 0.7

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"the threshold of ternary weights is a multiple of their mean, not {self.threshold}")

    def __call__(self, weight: Tensor) -> Tensor:
        absolute = weight.detach().abs()
        beyond = absolute > self.threshold * _channel_mean(absolute)
        count = _channel_mean(beyond.to(weight.dtype))
        scale = torch.where(count > 0, _channel_mean(torch.where(beyond, absolute, 0)) / count, 0)
        return straight_through(weight, scale * weight.detach().sign() * beyond)


def transformed(model: nn.Module, transforms: Mapping[str, Transform]) -> nn.Module:
    """`model`, in place, with each parameter that `transforms` names replaced by what its transform makes of it.

    The raw parameter is trained, under the name `parametrizations.NAME.original` within its module
    (`torch.nn.utils.parametrize`). A parameter that several layers share, under any of its names, is transformed in all
    of them. ValueError if `model` has no parameter of a name.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if unknown := transforms.keys() - parameters.keys():
        raise ValueError(f"{min(unknown)!r} is no parameter of the {type(model).__name__}: it has no transform")
    by_parameter = {id(parameters[name]): transform for name, transform in transforms.items()}
    for name, transform in [(n, by_parameter[id(p)]) for n, p in parameters.items() if id(p) in by_parameter]:
        owner, _, leaf = name.rpartition(".")
        parametrize.register_parametrization(model.get_submodule(owner), leaf, _Transformed(transform))
    return model


def fold(model: nn.Module) -> nn.Module:
    """`model`, in place, with what transforms make of its parameters as its plain parameters, under their old names; of
    one that several layers share, as one."""
    made: dict[tuple[int, ...], tuple[tuple, nn.Parameter]] = {}  # by the identities of what is trained, and that
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            values = {}
            for name, own in module.parametrizations.items():
                trained = tuple(own.parameters(recurse=False)) or (own,)
                key = tuple(map(id, trained))
                if key not in made:
                    made[key] = trained, nn.Parameter(getattr(module, name).detach().clone())
                values[name] = made[key][1]
            # not by `remove_parametrizations`, which would take the tensors from deep copies of the module, too
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, value in values.items():
                module.register_parameter(name, value)
    return model


class _Transformed(nn.Module):
    """The parametrization of a parameter by a transform; an assigned value becomes the raw parameter."""

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, weight: Tensor) -> Tensor:
        return self.transform(weight)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def extra_repr(self) -> str:
        return repr(self.transform)


def straight_through(weight: Tensor, rounded: Tensor) -> Tensor:
    """The value of `rounded`, bit for bit, with the gradient of `weight`."""
    return _StraightThrough.apply(weight, rounded)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(weight: Tensor, rounded: Tensor) -> Tensor:
        return rounded.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient, None


def _channel_mean(weight: Tensor) -> Tensor:
    """The mean over each output channel of [O, ...], [O, 1, ...]."""
    return weight.mean(tuple(range(1, weight.ndim)), keepdim=True) if weight.ndim > 1 else weight.mean()
