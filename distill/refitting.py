"""Refitting: the weights of a narrowed network by least squares, layer by layer, from few images without labels.

A narrowed network computes something else than the one that it is from as soon as one of its layers has lost inputs.
Layer by layer, from the front, its weights are fitted so that on given images it puts out what the wide network does,
from what the layers before it, fitted already, now put out. What is fitted is linear, so the solution is in closed
form, and is merged into the weights exactly: nothing is added to the network.

Layer by layer networks are reconstructed by He et al., ICCV 2017, arXiv 1707.06168. With few unlabelled images Li et
al., CVPR 2020, arXiv 1812.01839, fit a 1x1 convolution after each block and merge it; here the layers' own weights are
fitted, which can do all that such a convolution can.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from distill.temporary import hooks
from distill.untouched import untouched

# B images, G groups, I inputs of a group and O outputs (of a convolution: channels times positions of its kernel), S
# samples: positions of images

Layer = nn.Conv2d | nn.Linear
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FOLDS = 4  # that images are divided into, to choose a ridge
SAMPLES = 100  # for each unknown weight of an output that are enough
FEWEST = 2  # samples for each unknown weight of an output, below which a layer is left as it is


class Fitted(NamedTuple):
    """What refitting did to a layer."""

    name: str
    ridge: float
    error_before: float  # the mean square of what its outputs lack, over the variance of the wide network's outputs
    error_after: float


@torch.no_grad()
def refit(
    student: nn.Module,
    teacher: nn.Module,
    batches: Sequence[tuple],
    channels: Mapping[str, Tensor],
    *,
    ridges: Sequence[float] = RIDGES,
    positions: int = 64,
    generator: torch.Generator | None = None,
) -> list[Fitted]:
    """Fit the weights of `student`, in place, so that its layers put out what those of `teacher` of the same names do,
    on `batches` of what both are called with.

    `channels` names the layers that are fitted, convolutions and linear layers, and says for each which of the
    teacher's outputs its own are: indices [outputs]. A layer that runs several times, or of which the teacher has
    none, is left alone. Of the weights W and the shift b of a layer,

        min over W, b of  1/S sum over samples ||t - W x - b||^2 + ridge * v ||W - W0||^2

    is solved exactly, where x [I] is what the layer sees, t the teacher's output, W0 the present weight, and v the mean
    of x^2: with little to go by, weights stay near what they were. Of several `ridges` each layer takes the one that
    predicts the outputs on images left out best, in a cross-validation of `FOLDS`. Samples are up to `positions`
    positions of each image, drawn by `generator`, as many as give `SAMPLES` for each unknown weight of an output. The
    shift goes into the layer's bias, or else into the mean of the BatchNorm that comes next, which takes over the
    teacher's statistics, weight and bias for its channels; without
    either there is none. A layer with fewer than `FEWEST` samples for each unknown is left as it is.

    Both networks are in eval mode afterwards. One pass through the teacher, and one of the student for each layer, up
    to that layer. Gives the layers that were fitted, in order. ValueError for an unknown layer, one of another kind,
    indices of another number, or no batches.
    """
    if not batches:
        raise ValueError("there is nothing to refit by: give at least one batch")
    student.eval(), teacher.eval()
    layers = {name: _layer(student, name, channels[name]) for name in channels}
    order, norms = _order(student, batches[0], layers)
    known = dict(teacher.named_modules())
    order = [name for name in order if name in known]
    norms = {name: norm for name, norm in norms.items() if norm in known}
    images = sum(len(_first_tensor(batch)) for batch in batches)
    enough = {name: math.ceil(SAMPLES * layer.weight[0].numel() / images) for name, layer in layers.items()}
    most = {name: min(positions, count) for name, count in enough.items()}
    wanted = _Sampled(most, generator or torch.Generator().manual_seed(0))
    targets = wanted.outputs({name: (known[name], channels[name]) for name in order}, teacher, batches)
    fitted = []
    for name in order:
        layer, norm = layers[name], norms.get(name)
        if name not in targets:
            continue
        if norm is not None:
            _take_over(student.get_submodule(norm), known[norm], channels[name])
        x = wanted.inputs(name, layer, student, batches)
        found = _fit(layer, x, targets.pop(name), ridges, has_shift=norm is not None or layer.bias is not None)
        if found is None:
            continue
        weight, shift, *how_well = found
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(shift)
        elif norm is not None:
            student.get_submodule(norm).running_mean.sub_(shift)
        fitted.append(Fitted(name, *how_well))
    return fitted


def _layer(student: nn.Module, name: str, channels: Tensor) -> Layer:
    layer = dict(student.named_modules()).get(name)
    if not isinstance(layer, Layer):
        raise ValueError(f"{type(student).__name__} has no convolution and no linear layer {name!r} to refit")
    if len(channels) != len(layer.weight):
        raise ValueError(f"{name} has {len(layer.weight)} outputs, not {len(channels)}")
    return layer


def _order(student: nn.Module, batch: tuple, layers: Mapping[str, Layer]) -> tuple[list[str], dict[str, str]]:
    """The layers that run once, in the order in which they do, and the BatchNorm that each one's output goes to."""
    names = {layer: name for name, layer in layers.items()}
    runs: list[str] = []
    makers: dict[int, str] = {}
    norms: dict[str, str] = {}
    alive = []  # so that no two outputs have one id

    def after(module: nn.Module, args: tuple, output: Tensor) -> None:
        runs.append(names[module])
        makers[id(output)] = names[module]
        alive.append(output)

    def before(name: str, args: tuple) -> None:
        if (maker := makers.get(id(args[0]))) is not None:
            norms[maker] = name

    on_layers = (layer.register_forward_hook(after) for layer in names)
    on_norms = (
        module.register_forward_pre_hook(lambda _, args, name=name: before(name, args))
        for name, module in student.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    )
    with hooks(itertools.chain(on_layers, on_norms)):
        untouched(student, *(part[:1] if isinstance(part, Tensor) else part for part in batch))
    return [name for name in runs if runs.count(name) == 1], norms


class _Enough(Exception):
    """Raised within a forward pass of which the rest is of no use."""


class _Sampled:
    """What layers see and put out at the same positions of the same images, whenever they are asked."""

    def __init__(self, most: Mapping[str, int], generator: torch.Generator) -> None:
        self._most = most  # positions of an image, by layer
        self._generator = generator
        self._drawn: dict[tuple[str, int], Tensor] = {}  # by layer and batch, [B, P]

    def outputs(
        self, layers: Mapping[str, tuple[nn.Module, Tensor]], network: nn.Module, batches: Iterable[tuple]
    ) -> dict[str, Tensor]:
        """The channels asked for of each layer's outputs [S, O], in one pass."""
        found: dict[str, list[Tensor]] = {}
        batch_index = 0

        def keep(name: str, channels: Tensor, output: Tensor) -> None:
            rows = _rows(output)
            self._drawn[name, batch_index] = drawn = self._draw(name, rows)
            found.setdefault(name, []).append(_at(rows, drawn)[..., channels.to(rows.device)].flatten(0, 1))

        with hooks(
            layer.register_forward_hook(lambda _, args, output, name=name, own=own: keep(name, own, output))
            for name, (layer, own) in layers.items()
        ):
            for batch_index, batch in enumerate(batches):  # noqa: B007
                untouched(network, *batch)
        return {name: torch.cat(parts) for name, parts in found.items()}

    def inputs(self, name: str, layer: Layer, network: nn.Module, batches: Iterable[tuple]) -> Tensor:
        """What a layer sees [S, G, I] at the positions where its outputs were kept."""
        found = []
        for index, batch in enumerate(batches):
            seen: list[Tensor] = []

            def keep(module: nn.Module, args: tuple, seen: list[Tensor] = seen) -> None:
                seen.append(args[0])
                raise _Enough

            with hooks([layer.register_forward_pre_hook(keep)]), suppress(_Enough):
                untouched(network, *batch)
            found.append(_patches(layer, seen[0], self._drawn[name, index]))
        return torch.cat(found)

    def _draw(self, name: str, rows: Tensor) -> Tensor:
        images, positions = rows.shape[:2]
        noise = torch.rand(images, positions, generator=self._generator)
        return noise.topk(min(self._most[name], positions), dim=1).indices.to(rows.device)


def _first_tensor(batch: tuple) -> Tensor:
    return next(part for part in batch if isinstance(part, Tensor))


def _rows(features: Tensor) -> Tensor:
    """Features [B, C, H, W] or [B, ..., C] by position [B, P, C]."""
    if features.dim() == 4:
        return features.flatten(2).transpose(1, 2)
    return features.reshape(len(features), -1, features.shape[-1])


def _at(rows: Tensor, drawn: Tensor) -> Tensor:
    """Of [B, P, C] the positions drawn [B, p], as [B, p, C]."""
    return rows.gather(1, drawn[..., None].expand(-1, -1, rows.shape[2]))


def _patches(layer: Layer, x: Tensor, drawn: Tensor) -> Tensor:
    """What each group of a layer sees [S, G, I] of its input for its outputs at the positions drawn."""
    if isinstance(layer, nn.Linear):
        return _at(x.reshape(len(x), -1, x.shape[-1]), drawn).flatten(0, 1)[:, None]
    single = copy.deepcopy(layer)  # the same strides and padding, of each channel and one position of the kernel
    single.groups, single.bias = layer.in_channels, None
    parts = []
    for offset in torch.ones(layer.weight.shape[2:]).nonzero().tolist():
        one = x.new_zeros(layer.in_channels, 1, *layer.weight.shape[2:])
        one[:, :, offset[0], offset[1]] = 1
        parts.append(_at(_rows(functional_call(single, {"weight": one}, (x,))), drawn).flatten(0, 1))
    return torch.stack(parts, dim=2).unflatten(1, (layer.groups, -1)).flatten(2)  # [S, G, channels * positions]


def _fit(
    layer: Layer, x: Tensor, target: Tensor, ridges: Sequence[float], has_shift: bool
) -> tuple[Tensor, Tensor, float, float, float] | None:
    """Weight and shift that fit inputs [S, G, I] to targets [S, O], the ridge, and the error before and after; None
    where there are too few samples."""
    groups, unknown = x.shape[1:]
    if len(x) < FEWEST * (unknown + 1):
        return None
    weight = layer.weight.reshape(groups, -1, unknown).transpose(1, 2).double()  # [G, I, O / G]
    shift = torch.zeros(groups, 1, weight.shape[2], dtype=torch.double, device=x.device)
    if layer.bias is not None:
        shift += layer.bias.double().reshape(groups, 1, -1)
    x = x.double().transpose(0, 1)  # [G, S, I]
    lacking = target.double().unflatten(1, (groups, -1)).transpose(0, 1) - x @ weight - shift
    mean_x = x.mean(1, keepdim=True) if has_shift else torch.zeros_like(x[:, :1])
    mean_lacking = lacking.mean(1, keepdim=True) if has_shift else torch.zeros_like(lacking[:, :1])
    size = x.square().mean((1, 2)).clamp_min(1e-12)
    centred, left = x - mean_x, lacking - mean_lacking
    ridge = _best_ridge(centred, left, size, ridges) if len(ridges) > 1 else ridges[0]
    change = _Gram.of(centred, left).solution(ridge * size)
    moved = mean_lacking - mean_x @ change
    variance = target.double().var(0).sum().clamp_min(1e-12) * x.shape[1]
    before = lacking.square().sum() / variance
    after = (lacking - x @ change - moved).square().sum() / variance
    fitted = (weight + change).transpose(1, 2).reshape(layer.weight.shape).to(layer.weight.dtype)
    shift = (shift + moved if layer.bias is not None else moved).flatten().to(layer.weight.dtype)
    return fitted, shift, ridge, before.item(), after.item()


class _Gram(NamedTuple):
    """The mean products of inputs with each other [G, I, I] and with outputs [G, I, O / G]."""

    inputs: Tensor
    outputs: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> _Gram:
        """Of x [G, S, I] and y [G, S, O / G]."""
        return cls(x.transpose(1, 2) @ x / x.shape[1], x.transpose(1, 2) @ y / x.shape[1])

    def solution(self, ridge: Tensor) -> Tensor:
        """W [G, I, O / G] with the least mean ||y - x W||^2 + ridge ||W||^2, for ridges [G]."""
        penalty = torch.diag_embed(ridge[:, None].expand(self.inputs.shape[:2]))
        return torch.linalg.solve(self.inputs + penalty, self.outputs)

    def error(self, weight: Tensor) -> float:
        """The mean of ||y - x W||^2 over groups' samples, less that of ||y||^2."""
        return (weight * (self.inputs @ weight - 2 * self.outputs)).sum().item()


def _best_ridge(x: Tensor, y: Tensor, size: Tensor, ridges: Sequence[float]) -> float:
    """The ridge by which samples of images that are left out are predicted best; samples are in the images' order."""
    folds = [_Gram.of(*fold) for fold in zip(x.chunk(FOLDS, 1), y.chunk(FOLDS, 1))]
    errors = dict.fromkeys(ridges, 0.0)
    for out in folds:
        others = [fold for fold in folds if fold is not out]
        kept = _Gram(*(torch.stack(parts).mean(0) for parts in zip(*others)))
        for ridge in ridges:
            errors[ridge] += out.error(kept.solution(ridge * size))
    return min(ridges, key=errors.__getitem__)


def _take_over(own: _BatchNorm, other: nn.Module, channels: Tensor) -> None:
    """Give a BatchNorm what another one has for these of its channels."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        if getattr(own, name) is not None:
            getattr(own, name).copy_(getattr(other, name)[channels.to(own.running_mean.device)])
