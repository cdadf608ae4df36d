"""What text encoders and decoders are made of: torch's layers, and timm's attention and MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from timm.layers import Attention, DropPath, Mlp
from torch import Tensor, nn

from supernet.space import Arch

# B batch, L length in tokens, V vocabulary, E embedding, D channels of the network, H heads


class BlockSizes(NamedTuple):
    """What a block is as large as."""

    dim: int  # D
    num_heads: int
    head_dim: int  # channels of a head
    hidden: int  # channels within the MLP

    @property
    def weights(self) -> int:
        """Numbers in its four matrices, which is its MACs for a token without those of the attention itself."""
        return 4 * self.dim * self.num_heads * self.head_dim + 2 * self.dim * self.hidden

    @property
    def parameters(self) -> int:
        """With the biases, and two LayerNorms."""
        return self.weights + 3 * self.num_heads * self.head_dim + self.hidden + 6 * self.dim

    def macs(self, length: int) -> int:
        """Of a text of `length` tokens, queries and keys, weights and values included."""
        return self.weights * length + 2 * length**2 * self.num_heads * self.head_dim


def block_sizes(arch: Arch, block: int, head_dim: int) -> BlockSizes:
    """Those of a block of `arch`, whose choices are `embed_dim`, `blocks.3.num_heads` and `blocks.3.mlp_ratio`."""
    dim = arch["embed_dim"]
    return BlockSizes(dim, arch[f"blocks.{block}.num_heads"], head_dim, int(dim * arch[f"blocks.{block}.mlp_ratio"]))


class Embeddings(nn.Module):
    """Tokens [B, L] to vectors [B, L, D]: those of the tokens and of their positions added, normalised if `norm` says
    so, and dropped. With a `size` E, that is what the tables have, and a matrix makes D of it (ALBERT, arXiv
    1909.11942, section 3.1)."""

    def __init__(
        self,
        vocabulary: int,
        length: int,
        dim: int,
        eps: float,
        size: int | None = None,
        drop: float = 0.0,
        *,
        norm: bool = True,
    ) -> None:
        super().__init__()
        is_factorised, size = size is not None, size or dim
        self.tokens = nn.Embedding(vocabulary, size)
        self.positions = nn.Parameter(torch.empty(length, size))
        self.norm = nn.LayerNorm(size, eps) if norm else nn.Identity()
        self.drop = nn.Dropout(drop)
        self.projection = nn.Linear(size, dim) if is_factorised else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        return self.projection(self.drop(self.norm(x)))


class Block(nn.Module):
    """Attention and an MLP, each added to what it is made of [B, L, D] and normalised: after the sum, as BERT does, or
    before the branch, as GPT-2 does (`pre_norm`)."""

    def __init__(
        self,
        sizes: BlockSizes,
        eps: float,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        drop: float = 0.0,
        drop_path: float = 0.0,
        *,
        pre_norm: bool = False,
        causal: bool = False,
    ) -> None:
        super().__init__()
        dim = sizes.dim
        self.pre_norm, self.causal = pre_norm, causal
        self.attn = Attention(dim, sizes.num_heads, sizes.head_dim, qkv_bias=True, proj_drop=drop)
        self.norm1 = nn.LayerNorm(dim, eps)
        self.mlp = Mlp(dim, sizes.hidden, act_layer=act_layer, drop=(0.0, drop))
        self.norm2 = nn.LayerNorm(dim, eps)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` [B, 1, 1, L] says, true or false, which tokens are looked at; None for all, or all before."""
        if self.pre_norm:
            x = x + self.drop_path(self.attn(self.norm1(x), mask, self.causal))
            return x + self.drop_path(self.mlp(self.norm2(x)))
        x = self.norm1(x + self.drop_path(self.attn(x, mask, self.causal)))
        return self.norm2(x + self.drop_path(self.mlp(x)))


def initialise(module: nn.Module, std: float = 0.02) -> None:
    """As BERT and GPT-2 do: matrices and embeddings normal with a standard deviation of `std`, biases 0."""
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Embedding):
            nn.init.normal_(child.weight, std=std)
            if getattr(child, "bias", None) is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, Embeddings):
            nn.init.normal_(child.positions, std=std)
