"""A space whose layers choose their bits: how wide and deep a network is, and in which precision, in one search.

Quantisation-aware Once-for-All (Shen et al., arXiv 2010.04354) has one set of weights for subnets in few bits. Here a
layer's bits are a choice like its kernel size: its weights are those of all precisions, its steps those of the layer
and the bits. What a search judges is the network that computes in these bits, with BatchNorm recalibrated in them.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.temporary import hooks
from supernet.families.family import Family
from supernet.families.low_bits import in_few_bits, roundable
from supernet.plain import inputs_like
from supernet.skeleton import build_skeleton, without_data
from supernet.space import Arch, Choice, SearchSpace

END_BITS = 8  # of layers outside of blocks
FLOAT_BITS = 32


class _Layer(NamedTuple):
    block: str  # that it is in, "" for none
    macs: int  # for one example
    weights: int


def mixed_precision(
    space: str = "mobilenet_v3_micro",
    options: str = "{}",
    bits: Sequence[int] = (4, 8),
    *,
    num_classes: int = 10,
    in_chans: int = 3,
) -> Family:
    """The family of a `space` of this package, with `options`, a JSON object, and a choice of `bits` for the layers of
    each block, `BLOCK.bits`: a block is what holds layers, such as `blocks.1.0`, and the gate `blocks.1.0.se` in it.

    Weights and inputs of a layer have the same bits (`supernet.families.low_bits`); layers outside of blocks, the first
    and the last among them, have 8. There are two costs besides. `bit_operations` are the sum of multiply-accumulates
    times bits of the weight times bits of the input, 32 each in products that are no layer's; `weight_bytes` are those
    of layers' weights in their bits and of all other parameters in 32.

    ValueError for a space that is not of this package or has no blocks with layers that can compute in few bits, and
    for bits that do not rise from 2 to 8.
    """
    from supernet.families import FAMILIES

    if space not in FAMILIES:
        raise ValueError(f"bits are chosen for layers of a space of this package, not of {space!r}")
    if not bits or list(bits) != sorted(set(bits)) or not 2 <= bits[0] <= bits[-1] <= 8:
        raise ValueError(f"bits rise, from 2 to 8, such as (4, 8), not {bits}")
    plain = FAMILIES[space](num_classes=num_classes, in_chans=in_chans, **json.loads(options))
    if plain.order is not None:
        raise ValueError("channels are not sorted by activations where bits are chosen: take another importance")
    whole = roundable(build_skeleton(plain.build, plain.space.largest))
    blocks = [block for block in dict.fromkeys(map(_block, whole)) if block]
    if not blocks:
        raise ValueError(f"the networks of {space!r} have no blocks with plain convolutions or linear layers")
    chosen = {f"{block}.bits": Choice(tuple(bits), when=_when(plain.space, block)) for block in blocks}
    layers = lru_cache(maxsize=4096)(partial(_layers, plain))
    own = partial(_without_bits, plain.space)

    def steps(arch: Arch) -> int:
        return sum(2 * (len(bits) if layer.block else 1) for layer in layers(own(arch)))

    def parameters(arch: Arch) -> int:
        return plain.parameters(own(arch)) + steps(arch)

    def bit_operations(arch: Arch) -> int:
        found = layers(own(arch))
        rest = plain.macs(own(arch)) - sum(layer.macs for layer in found)
        return rest * FLOAT_BITS**2 + sum(layer.macs * _bits(arch, layer.block) ** 2 for layer in found)

    def weight_bytes(arch: Arch) -> float:
        found = layers(own(arch))
        rest = parameters(arch) - sum(layer.weights for layer in found)
        return rest * FLOAT_BITS / 8 + sum(layer.weights * _bits(arch, layer.block) / 8 for layer in found)

    return replace(
        plain,
        space=SearchSpace({**plain.space.choices, **chosen}),
        build=partial(_build, plain, tuple(bits)),
        macs=lambda arch: plain.macs(own(arch)),
        parameters=parameters,
        pieces=plain.pieces and partial(_pieces, plain, blocks),
        views=lambda arch: plain.views(own(arch)),
        weights=plain.weights and partial(_weights, plain, tuple(bits)),
        inputs=plain.inputs and (lambda arch: plain.inputs(own(arch))),
        counts={"bit_operations": bit_operations, "weight_bytes": weight_bytes},
        paper="Shen et al. 2020, arXiv 2010.04354; Esser et al. 2020, arXiv 1902.08153",
    )


def _block(layer: str) -> str:
    return layer.rpartition(".")[0]


def _bits(arch: Arch, block: str) -> int:
    return arch[f"{block}.bits"] if block else END_BITS


def _without_bits(space: SearchSpace, arch: Arch) -> Arch:
    return Arch({name: value for name, value in arch.items() if name in space.choices})


def _when(space: SearchSpace, block: str) -> dict[str, list]:
    """When a block is there: where the depths of all stages that it lies in are larger than its index there."""
    parts, when = block.split("."), {}
    for end in range(1, len(parts)):
        depth, index = ".".join([*parts[:end], "depth"]), parts[end]
        if depth in space.choices and index.isdecimal():
            values = space.choices[depth].values
            deeper = [value for value in values if value > int(index)]
            if len(deeper) < len(values):
                when[depth] = deeper
    return when


def _build(plain: Family, options: tuple[int, ...], arch: Arch, **rates: float) -> nn.Module:
    return _in_bits(plain.build(_without_bits(plain.space, arch), **rates), options, arch)


def _in_bits(model: nn.Module, options: tuple[int, ...], arch: Arch) -> nn.Module:
    for name, layer in roundable(model).items():
        block = _block(name)
        in_few_bits(layer, options if block else (END_BITS,), _bits(arch, block))
    return model


def _pieces(plain: Family, blocks: Sequence[str], arch: Arch) -> dict[str, Hashable]:
    def within(piece: str) -> tuple:
        return tuple(arch.get(f"{block}.bits") for block in blocks if f"{block}.".startswith(f"{piece}."))

    return {piece: (what, within(piece)) for piece, what in plain.pieces(_without_bits(plain.space, arch)).items()}


def _weights(plain: Family, options: tuple[int, ...], **how: bool) -> Mapping[str, Tensor]:
    """The pretrained ones, and the steps that they start with."""
    largest = plain.space.largest
    model = plain.build(largest)
    model.load_state_dict(plain.weights(**how))
    every = {f"{_block(name)}.bits": options[-1] for name in roundable(model) if _block(name)}
    return _in_bits(model, options, Arch({**largest, **every})).state_dict()


def _layers(plain: Family, arch: Arch) -> list[_Layer]:
    """The layers that compute in few bits, with what they cost."""

    def count(model: nn.Module, device: torch.device) -> list[_Layer]:
        found = []

        def note(name: str, layer: nn.Module, output: Tensor) -> None:
            weights = layer.weight.numel()
            found.append(_Layer(_block(name), output.numel() * weights // len(layer.weight), weights))

        noting = (
            layer.register_forward_hook(lambda layer, _, output, name=name: note(name, layer, output))
            for name, layer in roundable(model).items()
        )
        with hooks(noting):
            model(*inputs_like(plain.example(arch), model, device))
        return found

    return without_data(build_skeleton(plain.build, arch), count)
