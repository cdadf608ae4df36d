"""Training with weights of one bit, and with inputs of one bit.

IR-Net (Qin et al., *Forward and backward information retention for accurate binary neural networks*, CVPR 2020, arXiv
1909.10788), for weights alone: the gradient begins as that of the identity and ends as that of the sign. XNOR-Net
(Rastegari et al., ECCV 2016, arXiv 1603.05279), for weights and inputs. `compress.transforms.Binary` is the sign with
the gradient of the identity throughout.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from compress.tickets.masks import weights_of
from compress.transforms import fold, straight_through

# B batch, C input channels, O output channels, G groups, H, W height and width

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
        self.network = network
        self._signs = []
        for name in _binary_layers(network, exclude):
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


class ScaledSign(nn.Module):
    """The parametrization of a weight w [O, ...] by a sign(w), where 0 counts as positive.

    a is the mean of |w| over the n weights of an output channel, which with these signs is nearest to w (section 3.1).
    The gradient of each weight is that of its product times 1 / n + a where |w| <= 1, and times 1 / n beyond, as
    published (section 3.1, training).
    """

    def forward(self, weight: Tensor) -> Tensor:
        flat = weight.detach().flatten(1)
        scale = flat.abs().mean(1).view(-1, *[1] * (weight.dim() - 1))
        signs = torch.where(weight.detach() >= 0, 1.0, -1.0).to(weight.dtype)
        within = torch.where(weight.detach().abs() <= 1, weight, weight.detach())
        return straight_through(weight / flat.shape[1] + scale * within, scale * signs)


class BinaryInput(nn.Module):
    """A convolution or linear layer on the signs of its input times their scale, in place of `layer`.

    What comes out is layer(sign(x)) K, to which the bias is added. K [B, 1, H, W] is the mean of |x| over what a filter
    sees, channels of other groups apart and with padding as zeros: the mean over channels, filtered by a kernel of
    1 / (kernel height x kernel width) (section 3.2). The sign, of which 0 counts as positive, has the gradient of the
    identity where |x| <= 1 and none beyond. ValueError for a layer of another kind, or one that pads with anything else
    than zeros.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        if not isinstance(layer, nn.Conv2d | nn.Linear) or getattr(layer, "padding_mode", "zeros") != "zeros":
            raise ValueError(f"one bit is for 2d convolutions padded by zeros, and linear layers, not for {layer}")
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        signs = torch.where(x.detach() >= 0, 1.0, -1.0).to(x.dtype)
        binary = straight_through(x.clamp(-1, 1), signs)
        layer = self.layer
        if isinstance(layer, nn.Linear):
            output = F.linear(binary, layer.weight) * x.abs().mean(-1, keepdim=True)
            return output if layer.bias is None else output + layer.bias
        where = layer.stride, layer.padding, layer.dilation, layer.groups
        output = F.conv2d(binary, layer.weight, None, *where) * self._scale(x)
        return output if layer.bias is None else output + layer.bias[:, None, None]

    def _scale(self, x: Tensor) -> Tensor:
        layer = self.layer
        means = x.abs().unflatten(1, (layer.groups, -1)).mean(2)  # [B, G, H, W]
        height, width = layer.kernel_size
        box = means.new_full((layer.groups, 1, height, width), 1 / (height * width))
        scale = F.conv2d(means, box, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        return scale.repeat_interleave(layer.out_channels // layer.groups, dim=1)


class XnorAware(nn.Module):
    """`network`, the one given, with weights and inputs of one bit while its raw weights are trained.

    All convolutions and linear layers but those of `exclude`, by default the first and the last, whose few channels or
    1x1 filters one bit gains little on (section 4.1), become `BinaryInput`s with `ScaledSign`s, in place. XNOR-Net has
    them behind BatchNorm, and in front of pooling (section 3.2): behind a ReLU all signs are positive. ValueError for a
    layer in `exclude` that there is not, and what `BinaryInput` raises.
    """

    def __init__(self, network: nn.Module, exclude: Collection[str] | None = None) -> None:
        super().__init__()
        self.network = network
        for name in _binary_layers(network, exclude):
            layer = network.get_submodule(name)
            network.set_submodule(name, BinaryInput(layer))
            parametrize.register_parametrization(layer, "weight", ScaledSign())

    def forward(self, *inputs: Any) -> Any:
        return self.network(*inputs)

    def plain(self) -> nn.Module:
        """The network itself, with the values of its weights of one bit from now on, and its inputs in one bit."""
        return fold(self.network)


def _binary_layers(network: nn.Module, exclude: Collection[str] | None) -> list[str]:
    """The names of convolutions and linear layers but those of `exclude`, by default the first and the last."""
    names = [name.removesuffix(".weight") for name in weights_of(network)]
    exclude = {names[0], names[-1]} if exclude is None else set(exclude)
    if unknown := exclude - set(names):
        raise ValueError(f"{min(unknown)!r} is no convolution or linear layer of the {type(network).__name__}")
    return [name for name in names if name not in exclude]
