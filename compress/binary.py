"""Training with weights of one bit whose gradient begins as that of the identity and ends as that of the sign.

IR-Net (Qin et al., *Forward and backward information retention for accurate binary neural networks*, CVPR 2020, arXiv
1909.10788), for weights alone. `compress.transforms.Binary` is the sign with the gradient of the identity throughout.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compress.tickets.masks import weights_of
from compress.transforms import fold

# O output channels

FIRST, LAST = 0.1, 10.0  # steepness t at the beginning and at the end


class RetainedSign(nn.Module):
    """The parametrization of a weight [O, ...] by a power of two times a sign.

    Over each output channel the weight is standardised, u = (w - mean) / std with the unbiased deviation; what comes
    out is 2^round(log2(mean |u|)) sign(u), where 0 counts as positive. The gradient of the sign is taken as
    k t (1 - tanh(t u)^2), that of k tanh(t u), with k = max(1 / t, 1): nearly that of the identity for a small t.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steepness = FIRST

    def forward(self, weight: Tensor) -> Tensor:
        flat = weight.flatten(1)
        standardised = (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True).clamp_min(1e-12)
        scale = standardised.detach().abs().mean(1, keepdim=True).clamp_min(1e-12).log2().round().exp2()
        soft = max(1 / self.steepness, 1.0) * torch.tanh(self.steepness * standardised)
        signs = torch.where(standardised.detach() >= 0, 1.0, -1.0).to(weight.dtype)
        return (scale * (soft + (signs - soft).detach())).unflatten(1, weight.shape[1:])


class BinaryAware(nn.Module):
    """`network`, the one given, with weights of one bit while its raw weights are trained.

    All weights of convolutions and linear layers but those of `exclude`, by default of the first layer and the last,
    are `RetainedSign`s, in place. Their steepness grows geometrically from 0.1 to 10 along the training, of whose steps
    `begin_step` is told. ValueError for a layer in `exclude` that there is not.
    """

    def __init__(self, network: nn.Module, exclude: Collection[str] | None = None) -> None:
        super().__init__()
        names = [name.removesuffix(".weight") for name in weights_of(network)]
        exclude = {names[0], names[-1]} if exclude is None else set(exclude)
        if unknown := exclude - set(names):
            raise ValueError(f"{min(unknown)!r} is no convolution or linear layer of the {type(network).__name__}")
        self.network = network
        self._signs = []
        for name in names:
            if name not in exclude:
                self._signs.append(RetainedSign())
                parametrize.register_parametrization(network.get_submodule(name), "weight", self._signs[-1])

    def forward(self, *inputs: Any) -> Any:
        return self.network(*inputs)

    def begin_step(self, step: int, steps: int) -> None:
        """Let the steepness be that of `step`, counted from 0, of `steps`."""
        for sign in self._signs:
            sign.steepness = FIRST * (LAST / FIRST) ** (step / max(steps - 1, 1))

    def plain(self) -> nn.Module:
        """The network itself, with the values of its weights of one bit from now on."""
        return fold(self.network)
