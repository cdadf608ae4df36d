"""What lets tokens see each other: attention of a layer's own or of an earlier one, averages, or nothing.

- "own": attention as usual.
- "reused": the attention matrices of the nearest earlier layer that has its own, with values of this layer (SAN, Xiao
  et al., IJCAI 2019, arXiv 1906.11024, section 3).
- "average": the mean over the tokens, or in a causal network over those up to each, and a gate of how much of it and of
  the token goes on (AAN, Zhang et al., ACL 2018, arXiv 1805.00631, equations 1, 3 and 4, without its feed-forward
  network, since a block has one).
- "none": nothing is mixed, and the normalisation that belongs to it is left out as well.
"""

from __future__ import annotations

import torch
from timm.layers import Attention
from torch import Tensor, nn

from supernet.slicing import Rule, blocks
from supernet.space import Arch, SearchSpace

# B batch, L length in tokens, D channels of the network, H heads, A = H times the channels of a head

MIXERS = ("none", "average", "reused", "own")
"""Mixers of tokens, the largest subnet having the last of those that a space has."""
TENSORS = {
    "own": ("attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias"),
    "reused": ("reused.value.weight", "reused.value.bias", "reused.proj.weight", "reused.proj.bias"),
    "average": ("average.token_gate.weight", "average.token_gate.bias", "average.average_gate.weight"),
    "none": (),
}
"""Those of each, which have names of their own and so weights of their own."""


def mixer_rules(space: SearchSpace) -> dict[str, Rule]:
    """Slicing rules of the mixers that the networks of `space` have."""
    gated = any("average" in choice.values for choice in space.choices.values())
    return {"blocks.*.average.token_gate.*": blocks(2), "blocks.*.average.average_gate.*": blocks(2)} if gated else {}


def mixer_of(arch: Arch, block: int) -> str:
    """That of a block of `arch`: its own attention where there is no choice."""
    return arch.get(f"blocks.{block}.mixer", "own")


def attended_block(arch: Arch, block: int) -> int | None:
    """The block whose attention matrices a block of `arch` has, which may be its own; None without any."""
    mixer = mixer_of(arch, block)
    if mixer != "reused":
        return block if mixer == "own" else None
    return max(earlier for earlier in range(block) if mixer_of(arch, earlier) == "own")


def is_reused(arch: Arch, block: int) -> bool:
    """Whether the attention matrices of a block of `arch` are those of a later one, too."""
    return any(attended_block(arch, later) == block for later in range(block + 1, arch["depth"]))


def heads_of(arch: Arch, block: int) -> int:
    """The heads of the attention that a block of `arch` has or reuses; 0 without any."""
    attended = attended_block(arch, block)
    return 0 if attended is None else arch[f"blocks.{attended}.num_heads"]


def mixer_macs(mixer: str, dim: int, attn_dim: int, length: int, *, causal: bool = False) -> int:
    """Multiply-accumulates that mixing `length` tokens of D = `dim` channels takes. Attention is queries and keys,
    length^2 A for A = `attn_dim` channels of all heads, and weights and values, as many; where it is reused the latter
    alone."""
    return {
        "own": 4 * dim * attn_dim * length + 2 * length**2 * attn_dim,
        "reused": 2 * dim * attn_dim * length + length**2 * attn_dim,
        "average": 2 * dim**2 * (length + (length if causal else 1)),
        "none": 0,
    }[mixer]


def mixer_parameters(mixer: str, dim: int, attn_dim: int, qkv_bias: bool = True, proj_bias: bool = True) -> int:
    """Parameters of a mixer for D = `dim` channels and A = `attn_dim` channels of all heads."""
    projection = (attn_dim + proj_bias) * dim
    return {
        "own": 3 * (dim + qkv_bias) * attn_dim + projection,
        "reused": (dim + qkv_bias) * attn_dim + projection,
        "average": 4 * dim**2 + 2 * dim,
        "none": 0,
    }[mixer]


def add_mixer(
    block: nn.Module,
    mixer: str,
    dim: int,
    num_heads: int,
    head_dim: int,
    *,
    qkv_bias: bool = True,
    proj_bias: bool = True,
    proj_drop: float = 0.0,
    **options,
) -> None:
    """Give `block` the layers of its mixer, under the names of `TENSORS`, for `mix`. The other `options` are those of
    timm's attention."""
    if mixer == "own":
        block.attn = SelfAttention(
            dim, num_heads, head_dim, qkv_bias=qkv_bias, proj_bias=proj_bias, proj_drop=proj_drop, **options
        )
    elif mixer == "reused":
        block.reused = ReusedAttention(dim, num_heads, head_dim, qkv_bias, proj_bias, proj_drop)
    elif mixer == "average":
        block.average = AverageAttention(dim, proj_drop)


def mix(
    block: nn.Module,
    x: Tensor,
    mask: Tensor | None = None,
    attention: Tensor | None = None,
    *,
    causal: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """What the mixer of `block`, which is not "none", makes of x [B, L, D]: of the same shape, and where the block
    `keeps` its attention matrices these [B, H, L, L] as well.

    `mask` [B, 1, 1, L] is true for the tokens that are looked at; None for all, or all before. A block that reuses
    `attention` [B, H, L, L] is given it.
    """
    if block.mixer == "own":
        return block.attn(x, mask, causal, block.keeps)
    return block.average(x, mask, causal) if block.mixer == "average" else block.reused(x, attention)


class Blocks(nn.Sequential):
    """Blocks one after another, of which those that reuse attention are given that of the block before that kept its.
    Blocks that do neither may be any, such as timm's."""

    def forward(self, x: Tensor, *others: Tensor | None) -> Tensor:  # type: ignore[override]
        """Of x [B, L, D] and what every block takes besides, such as a mask, of the same shape as x."""
        attention = None
        for block in self:
            if getattr(block, "keeps", False):
                x, attention = block(x, *others)
            elif getattr(block, "mixer", "own") == "reused":
                x = block(x, *others, attention=attention)
            else:
                x = block(x, *others)
        return x


class SelfAttention(Attention):
    """timm's attention, which can give its matrices as well."""

    def forward(  # type: ignore[override]
        self, x: Tensor, mask: Tensor | None = None, causal: bool = False, keep: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """What attention makes of x [B, L, D], of the same shape, and where they are to `keep` its matrices [B, H, L,
        L], whose rows add up to 1.

        `mask` [B, 1, 1, L] is true for the tokens that are looked at. Matrices are not to be had of fused kernels.
        """
        if not keep:
            return super().forward(x, mask, causal)
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        scores = self.q_norm(query) * self.scale @ self.k_norm(key).transpose(-2, -1)
        lowest = torch.finfo(scores.dtype).min  # and not -inf, of which a softmax without tokens makes NaN
        if mask is not None:
            scores = scores.masked_fill(~mask, lowest)
        if causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, lowest)
        attention = scores.softmax(-1)
        mixed = self.norm(joined(self.attn_drop(attention) @ value))
        return self.proj_drop(self.proj(mixed)), attention


class ReusedAttention(nn.Module):
    """Values of x [B, L, D], mixed by attention matrices [B, H, L, L] of another layer."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.value = nn.Linear(dim, num_heads * head_dim, bias=qkv_bias)
        self.proj = nn.Linear(num_heads * head_dim, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, attention: Tensor) -> Tensor:
        value = self.value(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return self.proj_drop(self.proj(joined(attention @ value)))


class AverageAttention(nn.Module):
    """Of tokens y and averages g, i y + f g, where [i; f] = sigmoid(W [y; g] + b) are gates by channel."""

    def __init__(self, dim: int, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.token_gate = nn.Linear(dim, 2 * dim)  # W as two matrices, of which each has leading columns
        self.average_gate = nn.Linear(dim, 2 * dim, bias=False)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """`x` [B, L, D] and `mask` [B, 1, 1, L] as for attention."""
        average = averages(x, mask, causal)
        of_token, of_average = (self.token_gate(x) + self.average_gate(average)).sigmoid().chunk(2, -1)
        return self.proj_drop(of_token * x + of_average * average)


def averages(x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """The mean over the tokens of x [B, L, D] that `mask` [B, 1, 1, L] has, [B, 1, D], or, `causal`, over those of them
    up to each [B, L, D]; 0 where there are none."""
    weight = torch.ones_like(x[:1, :, :1]) if mask is None else mask[:, 0, 0, :, None].to(x.dtype)
    if causal:
        return (x * weight).cumsum(1) / weight.cumsum(1).clamp(min=1)
    return (x * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)


def joined(heads: Tensor) -> Tensor:
    """Heads [B, H, L, A / H] side by side [B, L, A]."""
    return heads.transpose(1, 2).flatten(-2)
