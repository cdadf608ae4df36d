"""The weights of a network that is measured before any training, as they follow from a seed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from supernet.training.randomness import Stream, torch_seed

T = TypeVar("T")

RESETS = ("reset_parameters", "_reset_parameters", "init_weights")  # what torch and timm call it


def built(build: Callable[[T], nn.Module], arch: T, seed: int) -> nn.Module:
    """`build(arch)`, where all that the builder draws from torch's global generator of the CPU follows from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(arch)


@torch.no_grad()
def initialise(model: nn.Module, mode: str, *seed: int) -> None:
    """Initialise every parameter of `model`; what it gets depends on `seed`, its name and its shape alone, not on what
    it was or on the rest of the network.

    Convolutions and linear layers get Kaiming's normal initialisation for ReLU by `mode`, fan_in or fan_out, and biases
    of 0; BatchNorm's scales are 1. All others (positions, class tokens, other norms, scales of layers, embeddings,
    fused attention weights, ...) get the initialisation that their module has by itself. Where a module has no method
    for that, a parameter around 0 gets a normal distribution with the spread that it has, rounded to 1, 2 or 5 times a
    power of ten; one that is constant, or lies around another value, stays as it is.
    """
    for name, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList):
            continue  # its owner's
        place = zlib.crc32(name.encode())
        others = {own for own, _ in module.named_parameters(recurse=False)} - {"weight", "bias"}
        if isinstance(module, _ConvNd | nn.Linear):
            weight = torch.empty(module.weight.shape)
            generator = seeded_generator(*seed, place)
            nn.init.kaiming_normal_(weight, mode=mode, nonlinearity="relu", generator=generator)
            if parametrize.is_parametrized(module, "weight"):
                module.weight = weight.to(module.weight)
            else:
                module.weight.copy_(weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, _BatchNorm):
            if module.affine:
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        else:
            others = {own for own, _ in module.named_parameters(recurse=False)}
            others = _reset(module, others, (*seed, place))
        for own in sorted(others):
            _redraw(module.get_parameter(own), (*seed, place, zlib.crc32(own.encode())))


def seeded_generator(*seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint32)[0]))


def _reset(module: nn.Module, names: Iterable[str], seed: tuple[int, ...]) -> set[str]:
    """Have a module initialise its own parameters `names`, by the first of `RESETS` that does; those that none does."""
    left = set(names)
    for method in RESETS:
        reset = getattr(module, method, None)
        if not (left and callable(reset)):
            continue
        before = {name: module.get_parameter(name).clone() for name in left}
        for name in left:  # so that it shows which ones the module writes, even if it writes what was there
            module.get_parameter(name).fill_(math.nan)
        try:
            with torch_seed(torch.device("cpu"), seed[0], Stream.WEIGHTS, *seed[1:]):
                reset()
        except TypeError:  # it wants arguments
            pass
        for name, value in before.items():
            if module.get_parameter(name).isnan().any():
                module.get_parameter(name).copy_(value)
            else:
                left.discard(name)
    return left


def _redraw(parameter: Tensor, seed: tuple[int, ...]) -> None:
    if parameter.numel() < 2 or not parameter.is_floating_point():
        return
    spread, mean = (value.item() for value in torch.std_mean(parameter))
    if not (math.isfinite(spread) and spread > abs(mean)):
        return
    power = 10.0 ** math.floor(math.log10(spread))
    spread = min((digit * power for digit in (1, 2, 5, 10)), key=lambda value: abs(math.log(value / spread)))
    with torch_seed(torch.device("cpu"), seed[0], Stream.WEIGHTS, *seed[1:]):
        nn.init.normal_(parameter, std=spread)
