"""AutoFormer's elastic vision transformer (Chen et al., ICCV 2021, arXiv 2107.00651), as timm's `VisionTransformer`.

Choices: `embed_dim` and `depth` of the network, `blocks.3.num_heads` and `blocks.3.mlp_ratio` of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from supernet.families.family import Family
from supernet.families.transformers.block_choices import block_choices
from supernet.slicing import blocks
from supernet.space import Arch, Choice, SearchSpace

# B batch, N tokens, H heads, D channels of a head

HEAD_DIM = 64  # channels of an attention head, whatever the width of the network
DISTANCE = 14  # patches, beyond which relative positions are the same
DISTANCES = 2 * DISTANCE + 2  # in each direction, none, and that to and from the class token


@dataclass(frozen=True)
class _Network:
    embed_dim: Sequence[int]  # channels
    depth: Sequence[int]  # blocks
    num_heads: Sequence[int]
    mlp_ratio: Sequence[float]  # hidden channels over `embed_dim`
    num_classes: int
    in_chans: int
    relative_positions: bool
    input_size: int = 224  # pixels a side
    patch_size: int = 16  # pixels a side

    @property
    def side(self) -> int:
        """Patches a side."""
        return self.input_size // self.patch_size


def autoformer_tiny(num_classes: int = 1000, in_chans: int = 3, relative_positions: bool = True) -> Family:
    """AutoFormer's supernet-tiny (arXiv 2107.00651, table 1): embedding 192, 216 or 240, 12 to 14 blocks, each with
    3 or 4 heads of 64 channels and an MLP ratio of 3.5 or 4; a class token, patches of 16 pixels, images of 224.

    The paper also chooses the width of queries, keys and values; as in the authors' code that is 64 for every head.
    Positions are learnt and absolute, and, with `relative_positions`, also relative ones of keys and values (Shaw et
    al., arXiv 1803.02155, in two dimensions), without which attention is torch's fused one. The logits come from the
    mean over the patches, as in the authors' training script.
    """
    return _autoformer(
        _Network((192, 216, 240), (12, 13, 14), (3, 4), (3.5, 4.0), num_classes, in_chans, relative_positions)
    )


def autoformer_small(num_classes: int = 1000, in_chans: int = 3, relative_positions: bool = True) -> Family:
    """AutoFormer's supernet-small: embedding 320, 384 or 448, 12 to 14 blocks, each with 5 to 7 heads and an MLP ratio
    of 3, 3.5 or 4; else as `autoformer_tiny`."""
    return _autoformer(
        _Network((320, 384, 448), (12, 13, 14), (5, 6, 7), (3.0, 3.5, 4.0), num_classes, in_chans, relative_positions)
    )


def autoformer_base(num_classes: int = 1000, in_chans: int = 3, relative_positions: bool = True) -> Family:
    """AutoFormer's supernet-base: embedding 528, 576 or 624, 14 to 16 blocks, each with 8 to 10 heads and an MLP ratio
    of 3, 3.5 or 4; else as `autoformer_tiny`."""
    return _autoformer(
        _Network((528, 576, 624), (14, 15, 16), (8, 9, 10), (3.0, 3.5, 4.0), num_classes, in_chans, relative_positions)
    )


def _autoformer(network: _Network) -> Family:
    return Family(
        space=_space(network),
        build=partial(_build, network),
        macs=lambda arch: _count(network, arch)[0],
        parameters=lambda arch: _count(network, arch)[1],
        num_classes=network.num_classes,
        in_chans=network.in_chans,
        input_size=network.input_size,
        rules={"blocks.*.attn.qkv.*": blocks(3)},
        paper="Chen et al. 2021, arXiv 2107.00651",
    )


def _space(network: _Network) -> SearchSpace:
    sizes = {"embed_dim": Choice(network.embed_dim), "depth": Choice(network.depth)}
    return SearchSpace(sizes | block_choices(network.depth, network.num_heads, network.mlp_ratio))


class _Attention(Attention):
    """timm's attention with heads of 64 channels."""

    def __init__(self, dim: int, num_heads: int, **options) -> None:
        super().__init__(dim, num_heads, attn_head_dim=HEAD_DIM, **options)


class RelativePositions(nn.Module):
    """A vector for every pair of tokens, of their distance in rows and columns of patches: [N, N, D].

    Distances beyond `DISTANCE` patches count as that; all pairs with the class token, which comes first, have one
    vector. It is the sum of one vector for the rows and one for the columns, and the same for all heads.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.table_v, self.table_h = (nn.Parameter(torch.empty(DISTANCES, HEAD_DIM)) for _ in range(2))
        for table in (self.table_v, self.table_h):
            trunc_normal_(table, std=0.02)
        places = torch.arange(side**2, device="cpu")
        for name, place in (("rows", places // side), ("columns", places % side)):
            distance = (place[None] - place[:, None]).clamp(-DISTANCE, DISTANCE) + DISTANCE + 1
            self.register_buffer(name, nn.functional.pad(distance, (1, 0, 1, 0)), persistent=False)

    def forward(self) -> Tensor:
        return self.table_v[self.rows] + self.table_h[self.columns]


class RelativeAttention(_Attention):
    """Attention in which keys and values have relative positions (arXiv 2107.00651, section 3.2):

    softmax((q_i (k_j + r_ij)) / sqrt(D)) weighs v_j + s_ij.
    """

    def __init__(self, dim: int, num_heads: int, side: int, **options) -> None:
        super().__init__(dim, num_heads, **options)
        self.rel_pos_k, self.rel_pos_v = RelativePositions(side), RelativePositions(side)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if attn_mask is not None or is_causal:
            raise ValueError("attention with relative positions takes no mask")
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # [B, H, N, D] each
        q = q * self.scale
        attn = q @ k.transpose(-2, -1) + torch.einsum("bhid,ijd->bhij", q, self.rel_pos_k())
        attn = self.attn_drop(attn.softmax(dim=-1))
        x = attn @ v + torch.einsum("bhij,ijd->bhid", attn, self.rel_pos_v())
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(batch, tokens, self.attn_dim)))


def _build(network: _Network, arch: Arch, drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> VisionTransformer:
    def block(depth: int, **options) -> Block:  # timm calls the index of a block its depth
        options["num_heads"] = arch[f"blocks.{depth}.num_heads"]
        options["mlp_ratio"] = arch[f"blocks.{depth}.mlp_ratio"]
        made = Block(**options)
        if network.relative_positions:
            same = {name: options[name] for name in ("qkv_bias", "attn_drop", "proj_drop")}
            made.attn = RelativeAttention(options["dim"], options["num_heads"], network.side, **same)
        return made

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
    dim, patches = arch["embed_dim"], network.side**2
    tokens, relative = patches + 1, network.relative_positions
    patch_embed = network.in_chans * network.patch_size**2 * dim
    macs = patch_embed * patches
    parameters = patch_embed + dim + (1 + tokens) * dim  # the bias; the class token and the positions
    for b in range(arch["depth"]):
        attn_dim = HEAD_DIM * arch[f"blocks.{b}.num_heads"]
        hidden = int(dim * arch[f"blocks.{b}.mlp_ratio"])
        weights = 4 * dim * attn_dim + 2 * dim * hidden
        macs += weights * tokens + (4 if relative else 2) * tokens**2 * attn_dim
        parameters += weights + 3 * attn_dim + dim + hidden + dim + 4 * dim  # biases; two LayerNorms
        parameters += 4 * DISTANCES * HEAD_DIM if relative else 0
    return macs + dim * network.num_classes, parameters + 2 * dim + (dim + 1) * network.num_classes
