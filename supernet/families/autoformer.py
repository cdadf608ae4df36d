"""AutoFormer's elastic vision transformer (Chen et al., ICCV 2021, arXiv 2107.00651), as timm's `VisionTransformer`.

Choices: `embed_dim` and `depth` of the network, `blocks.3.num_heads` and `blocks.3.mlp_ratio` of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from timm.models.vision_transformer import Attention, Block, VisionTransformer

from supernet.families.family import Family
from supernet.slicing import blocks
from supernet.space import Arch, Choice, SearchSpace

HEAD_DIM = 64  # channels of an attention head, whatever the width of the network


@dataclass(frozen=True)
class _Network:
    embed_dim: Sequence[int]  # channels
    depth: Sequence[int]  # blocks
    num_heads: Sequence[int]
    mlp_ratio: Sequence[float]  # hidden channels over `embed_dim`
    num_classes: int
    in_chans: int
    input_size: int = 224  # pixels a side
    patch_size: int = 16  # pixels a side

    @property
    def patches(self) -> int:
        return (self.input_size // self.patch_size) ** 2


def autoformer_tiny(num_classes: int = 1000, in_chans: int = 3) -> Family:
    """AutoFormer's supernet-tiny (arXiv 2107.00651, table 1): embedding 192, 216 or 240, 12 to 14 blocks, each with
    3 or 4 heads of 64 channels and an MLP ratio of 3.5 or 4; a class token, patches of 16 pixels, images of 224.

    The paper also chooses the width of queries, keys and values; as in the authors' code that is 64 for every head.
    Positions are learnt and absolute; the relative ones, which the authors add to keys and values, are left out.
    The logits come from the mean over the patches, as in the authors' training script.
    """
    network = _Network((192, 216, 240), (12, 13, 14), (3, 4), (3.5, 4.0), num_classes, in_chans)
    return Family(
        space=_space(network),
        build=partial(_build, network),
        macs=lambda arch: _count(network, arch)[0],
        parameters=lambda arch: _count(network, arch)[1],
        num_classes=num_classes,
        in_chans=in_chans,
        input_size=network.input_size,
        rules={"blocks.*.attn.qkv.*": blocks(3)},
        paper="Chen et al. 2021, arXiv 2107.00651",
    )


def _space(network: _Network) -> SearchSpace:
    choices = {"embed_dim": Choice(network.embed_dim), "depth": Choice(network.depth)}
    for b in range(network.depth[-1]):
        deeper = [depth for depth in network.depth if depth > b]
        when = {} if len(deeper) == len(network.depth) else {"depth": deeper}
        choices[f"blocks.{b}.num_heads"] = Choice(network.num_heads, when)
        choices[f"blocks.{b}.mlp_ratio"] = Choice(network.mlp_ratio, when)
    return SearchSpace(choices)


class _Attention(Attention):
    """timm's attention with heads of 64 channels."""

    def __init__(self, dim: int, num_heads: int, **options) -> None:
        super().__init__(dim, num_heads, attn_head_dim=HEAD_DIM, **options)


def _build(network: _Network, arch: Arch, drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> VisionTransformer:
    def block(depth: int, **options) -> Block:  # timm calls the index of a block its depth
        options["num_heads"] = arch[f"blocks.{depth}.num_heads"]
        options["mlp_ratio"] = arch[f"blocks.{depth}.mlp_ratio"]
        return Block(**options)

    return VisionTransformer(
        img_size=network.input_size,
        patch_size=network.patch_size,
        in_chans=network.in_chans,
        num_classes=network.num_classes,
        global_pool="avg",
        fc_norm=False,
        embed_dim=arch["embed_dim"],
        depth=arch["depth"],
        block_fn=block,
        attn_layer=_Attention,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )


def _count(network: _Network, arch: Arch) -> tuple[int, int]:
    """MACs, those of the attention itself included, and parameters of a subnet."""
    dim, tokens = arch["embed_dim"], network.patches + 1
    patch_embed = network.in_chans * network.patch_size**2 * dim
    macs = patch_embed * network.patches
    parameters = patch_embed + dim + (1 + tokens) * dim  # the bias; the class token and the positions
    for b in range(arch["depth"]):
        attn_dim = HEAD_DIM * arch[f"blocks.{b}.num_heads"]
        hidden = int(dim * arch[f"blocks.{b}.mlp_ratio"])
        weights = 4 * dim * attn_dim + 2 * dim * hidden
        macs += weights * tokens + 2 * tokens**2 * attn_dim
        parameters += weights + 3 * attn_dim + dim + hidden + dim + 4 * dim  # biases; two LayerNorms
    return macs + dim * network.num_classes, parameters + 2 * dim + (dim + 1) * network.num_classes
