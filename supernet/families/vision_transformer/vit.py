"""Any of timm's plain vision transformers as the largest subnet of a family, elastic in every size.

Choices: `embed_dim`, `depth`, `patch_size` and `resolution` in pixels, `registers` and `pool` of the network,
`blocks.3.num_heads`, `blocks.3.mlp_ratio` and, with several mixers of tokens, `blocks.3.mixer` of a block.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from supernet.artifacts.weights import read_weights
from supernet.channels.importance import Importance, order_channels
from supernet.families.family import Family
from supernet.families.timm_models import TimmModel, create_regularised, timm_model
from supernet.families.transformers.block_choices import block_choices
from supernet.families.transformers.mixers import Blocks, mixer_rules
from supernet.families.vision_transformer.block import MixingBlock, make_block
from supernet.families.vision_transformer.costs import Sizes, macs_of, parameters_formula
from supernet.families.vision_transformer.resizing import ResizedPatches, ResizedPositions
from supernet.families.vision_transformer.rewiring import transformer_channels
from supernet.skeleton import build_skeleton
from supernet.slicing import blocks
from supernet.space import Arch, Choice, SearchSpace

FRACTIONS = (0.5, 0.75, 1.0)  # of a size of the model, where nothing else is said
POOLS = ("avg", "token")


def vit(
    name: str = "vit_tiny_patch16_224",
    embed_dim: Sequence[int] | None = None,
    depth: Sequence[int] | None = None,
    num_heads: Sequence[int] | None = None,
    mlp_ratio: Sequence[float] | None = None,
    patch_size: Sequence[int] | None = None,
    resolution: Sequence[int] | None = None,
    registers: Sequence[int] | None = None,
    pool: Sequence[str] | None = None,
    head_dim: int | None = None,
    mixers: Sequence[str] = ("own",),
    *,
    pretrained: bool | str | os.PathLike = False,
    importance: Importance = "l1",
    num_classes: int | None = None,
    in_chans: int = 3,
    saved_config: Mapping[str, Any] | None = None,
) -> Family:
    """A family whose subnets are timm's `VisionTransformer`, and the largest of which is the model `name`.

    Each choice has the values given: rising, but for `patch_size`, whose smallest makes the network largest and comes
    last. Where none are given, `embed_dim` (channels), `depth` (blocks), `num_heads` and `mlp_ratio` (both by block)
    are half, three quarters and all of the model's; `patch_size` (pixels) is twice the model's, if that divides its
    images, and its own; `resolution` (pixels) is three of its size and below. Every resolution is a multiple of every
    patch size. A smaller subnet keeps leading heads of `head_dim` channels (the model's own if None), leading neurons
    and leading channels; kernels and positions are resized as in FlexiViT (`resizing`). `registers` are tokens that
    nothing is read from (Darcet et al., arXiv 2309.16588), by default as many as the model has. `pool` says what the
    classifier reads, the class token ("token") or the mean over patches of a network without one ("avg"); by default
    as the model does.

    `mixers`, of `supernet.families.transformers.mixers.MIXERS`, are those of which each block chooses one: attention of
    its own, which is all there is by default, that of an earlier block, averages, or none. A subnet whose blocks all
    have their own is timm's, and only blocks that mix otherwise, or whose attention others reuse, are `MixingBlock`s.

    `pretrained` starts from the weights that `name` stands for, or those in a file, as in `from_timm`; heads, neurons
    and embedding channels are then ordered by `importance`, which leaves what the largest subnet computes unchanged
    (`rewiring`, which also orders them by data). The class token has no position of its own: a pretrained one is added
    to the token. `saved_config` is as in `from_timm`.

    ValueError for a model that is no plain `VisionTransformer`, and for values that do not fit.
    """
    model = timm_model(name, num_classes, in_chans, resolution[-1] if resolution else None, saved_config)
    own = _plain_transformer(build_skeleton(lambda _: model.create(), None), name)
    block, patch, size = own.blocks[0], own.patch_embed.patch_size[0], model.input_size
    head_dim = head_dim or block.attn.head_dim
    patch_size = patch_size or ((2 * patch, patch) if size % (2 * patch) == 0 else (patch,))
    network = _Network(
        model,
        head_dim,
        {
            "embed_dim": embed_dim or _fractions(own.embed_dim, 8),
            "depth": depth or _fractions(len(own.blocks)),
            "patch_size": patch_size,
            "resolution": resolution or _resolutions(size, max(patch_size)),
            "registers": registers or (own.num_reg_tokens,),
        },
        tuple(pool or ()),
        tuple(mixers),
        num_heads or _fractions(block.attn.num_heads),
        mlp_ratio or tuple(fraction * block.mlp.fc1.out_features / own.embed_dim for fraction in FRACTIONS),
    )
    network.check()
    space = network.space
    largest = build_skeleton(partial(_build, network), space.largest)
    parameters = parameters_formula(largest)
    return Family(
        space=space,
        build=partial(_build, network),
        macs=lambda arch: macs_of(
            head_dim, in_chans, model.num_classes, network.sizes(arch), network.prefix_tokens(arch, largest)
        ),
        parameters=lambda arch: parameters(
            network.sizes(arch), network.registers(arch), network.has_class_token(arch, largest)
        ),
        num_classes=model.num_classes,
        in_chans=in_chans,
        rules={"blocks.*.attn.qkv.*": blocks(3), "patch_embed.proj.weight": ResizedPatches()}
        | mixer_rules(space)
        | ({"pos_embed": ResizedPositions()} if largest.pos_embed is not None else {}),
        paper="Dosovitskiy et al. 2021, arXiv 2010.11929; Beyer et al. 2023, arXiv 2212.08013",
        weights=partial(_weights, network, pretrained, importance) if pretrained else None,
        weights_classes=partial(model.classes, pretrained),
    )


@dataclass(frozen=True)
class _Network:
    model: TimmModel
    head_dim: int
    values: Mapping[str, Sequence[int]]  # of the choices of the network
    pool: tuple[str, ...]  # empty for the model's own
    mixers: tuple[str, ...]  # of tokens
    num_heads: Sequence[int]
    mlp_ratio: Sequence[float]

    def check(self) -> None:
        for size in self.values["resolution"]:
            if odd := [patch for patch in self.values["patch_size"] if size % patch]:
                raise ValueError(f"a resolution of {size} pixels is no multiple of the patch_size {odd[0]}")
        if min(self.values["registers"]) == 0 < max(self.values["registers"]):
            raise ValueError(
                f"registers are numbers from 1, or (0,) for none, not {tuple(self.values['registers'])}: a smaller "
                "subnet has fewer of them, and not another network"
            )
        if odd := [pool for pool in self.pool if pool not in POOLS]:
            raise ValueError(f"pool is of {', '.join(POOLS)}, not {odd[0]!r}")
        if "own" not in self.mixers:
            raise ValueError(f"mixers have own among them, which the model's blocks have, not {self.mixers}")

    @property
    def space(self) -> SearchSpace:
        choices = {
            name: Choice(values, falling=name == "patch_size")
            for name, values in self.values.items()
            if name != "registers" or len(values) > 1
        }
        if len(self.pool) > 1:
            choices["pool"] = Choice(self.pool)
        choices |= block_choices(self.values["depth"], self.num_heads, self.mlp_ratio, self.mixers)
        return SearchSpace(choices)

    def sizes(self, arch: Arch) -> Sizes:
        return Sizes(arch, arch["resolution"], arch["patch_size"])

    def registers(self, arch: Arch) -> int:
        return arch.get("registers", self.values["registers"][0])

    def pool_of(self, arch: Arch) -> str | None:
        return arch.get("pool", self.pool[0] if self.pool else None)

    def has_class_token(self, arch: Arch, largest: VisionTransformer) -> bool:
        pool = self.pool_of(arch)
        return largest.has_class_token if pool is None else pool == "token"

    def prefix_tokens(self, arch: Arch, largest: VisionTransformer) -> int:
        return self.registers(arch) + self.has_class_token(arch, largest)

    def options(self, arch: Arch) -> dict[str, Any]:
        """Those of `timm.create_model`, but for the blocks."""
        pool = self.pool_of(arch)
        pooled = {} if pool is None else {"global_pool": pool, "class_token": pool == "token", "fc_norm": False}
        return {
            "img_size": arch["resolution"],
            "patch_size": arch["patch_size"],
            "embed_dim": arch["embed_dim"],
            "depth": arch["depth"],
            "reg_tokens": self.registers(arch),
            **pooled,
        }


def _build(network: _Network, arch: Arch, drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> VisionTransformer:
    model = create_regularised(partial(_creator(network, arch), no_embed_class=True), drop_rate, drop_path_rate)
    if any(isinstance(block, MixingBlock) for block in model.blocks):
        model.blocks = Blocks(*model.blocks)
    return model


def _creator(network: _Network, arch: Arch) -> Callable[..., VisionTransformer]:
    """What makes the model of `arch`, with positions as the model `name` has them."""

    def block(depth: int, **options) -> Block:  # timm calls the index of a block its depth
        return make_block(arch, depth, network.head_dim, options)

    return partial(network.model.create, **network.options(arch), block_fn=block)


def _weights(
    network: _Network, pretrained: bool | str | os.PathLike, importance: Importance, **options: bool
) -> Mapping[str, Tensor]:
    """Those of the largest subnet, ordered, in which the positions of class token and registers are added to these."""
    create = _creator(network, network.space.largest)
    if not isinstance(pretrained, bool) and _has_positions_of_patches_alone(pretrained):
        create = partial(create, no_embed_class=True)
    model = network.model._replace(create=create).load(pretrained, **options)
    _without_prefix_positions(model)
    return order_channels(model, transformer_channels(model), importance).state_dict()


def _has_positions_of_patches_alone(path: str | os.PathLike) -> bool:
    """Whether a file of weights has a square of positions, as what is taken out of this family has, and none before it
    for a class token."""
    if Path(path).suffix == ".npz":  # of the authors, who have one
        return False
    found = next((tensor for name, tensor in read_weights(path).items() if name.endswith("pos_embed")), None)
    return found is not None and found.dim() == 3 and math.isqrt(found.shape[1]) ** 2 == found.shape[1]


@torch.no_grad()
def _without_prefix_positions(model: VisionTransformer) -> None:
    """Let `model`, in place, add positions to its patches alone; it computes what it did."""
    if model.no_embed_class or model.pos_embed is None:
        return
    prefix, patches = model.pos_embed.split([model.num_prefix_tokens, model.patch_embed.num_patches], dim=1)
    for token in (model.cls_token, model.reg_token):
        if token is not None:
            own, prefix = prefix.split([token.shape[1], prefix.shape[1] - token.shape[1]], dim=1)
            token.add_(own)
    model.pos_embed, model.no_embed_class = nn.Parameter(patches.clone()), True


def _plain_transformer(model: nn.Module, name: str) -> VisionTransformer:
    """`model`; ValueError unless its blocks are what the family makes."""
    reason = None
    if type(model) is not VisionTransformer:
        reason = f"it is a {type(model).__name__}"
    elif odd := next((b for b in model.blocks if type(b) is not Block), None):
        reason = f"it has blocks of {type(odd).__name__}"
    elif odd := next((b.attn for b in model.blocks if type(b.attn) is not Attention), None):
        reason = f"it has blocks with {type(odd).__name__}"
    elif type(model.blocks[0].mlp) is not Mlp:
        reason = f"its MLP is a {type(model.blocks[0].mlp).__name__}"
    elif model.attn_pool is not None:
        reason = "it pools by attention"
    if reason:
        raise ValueError(f"vit takes timm's plain vision transformers, and {name!r} is none ({reason}): use from_timm")
    return model


def _fractions(size: int, step: int = 1) -> tuple[int, ...]:
    """FRACTIONS of `size`, upwards to multiples of `step`."""
    return tuple(sorted({-int(-size * fraction // step) * step for fraction in FRACTIONS[:-1]} | {size}))


def _resolutions(size: int, patch_size: int) -> tuple[int, ...]:
    """Three quarters, seven eighths and all of `size`, downwards to multiples of `patch_size`."""
    smaller = {int(size * fraction) // patch_size * patch_size for fraction in (0.75, 0.875)}
    return tuple(sorted({*smaller, size} - {0}))
