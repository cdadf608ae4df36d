"""What text encoders and decoders are made of: torch's layers, mixers of tokens, and timm's MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from supernet.families.transformers.mixers import (
    add_mixer,
    heads_of,
    is_reused,
    mix,
    mixer_macs,
    mixer_of,
    mixer_parameters,
)
from supernet.space import Arch

# B batch, L length in tokens, V vocabulary, E embedding, D channels of the network, H heads


class BlockSizes(NamedTuple):
    """What a block is as large as, and how it mixes tokens (`supernet.families.transformers.mixers`)."""

    dim: int  # D
    num_heads: int  # of the attention that it has or reuses
    head_dim: int  # channels of a head
    hidden: int  # channels within the MLP
    mixer: str = "own"
    keeps: bool = False  # attention matrices, for a later block

    @property
    def parameters(self) -> int:
        """With the biases, and its LayerNorms."""
        mixing = mixer_parameters(self.mixer, self.dim, self.num_heads * self.head_dim)
        norms = 2 * self.dim * (1 if self.mixer == "none" else 2)
        return mixing + norms + 2 * self.dim * self.hidden + self.hidden + self.dim

    def macs(self, length: int, *, causal: bool = False) -> int:
        """Of a text of `length` tokens."""
        mixing = mixer_macs(self.mixer, self.dim, self.num_heads * self.head_dim, length, causal=causal)
        return mixing + 2 * self.dim * self.hidden * length


def block_sizes(arch: Arch, block: int, head_dim: int) -> BlockSizes:
    """Those of a block of `arch`, whose choices are `embed_dim`, `blocks.3.mlp_ratio`, `blocks.3.num_heads` and
    `blocks.3.mixer`."""
    dim = arch["embed_dim"]
    hidden = int(dim * arch[f"blocks.{block}.mlp_ratio"])
    return BlockSizes(dim, heads_of(arch, block), head_dim, hidden, mixer_of(arch, block), is_reused(arch, block))


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
    """A mixer of tokens, attention mostly, and an MLP, each added to what it is made of [B, L, D] and normalised: after
    the sum, as BERT does, or before the branch, as GPT-2 does (`pre_norm`)."""

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
        self.pre_norm, self.causal, self.mixer, self.keeps = pre_norm, causal, sizes.mixer, sizes.keeps
        add_mixer(self, self.mixer, dim, sizes.num_heads, sizes.head_dim, proj_drop=drop)
        if self.mixer != "none":
            self.norm1 = nn.LayerNorm(dim, eps)
        self.mlp = Mlp(dim, sizes.hidden, act_layer=act_layer, drop=(0.0, drop))
        self.norm2 = nn.LayerNorm(dim, eps)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, attention: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """`mask` [B, 1, 1, L] says, true or false, which tokens are looked at; None for all, or all before. A block
        that reuses `attention` [B, H, L, L] is given it, and one that keeps its own gives it as well."""
        if self.mixer != "none":
            mixed = mix(self, self.norm1(x) if self.pre_norm else x, mask, attention, causal=self.causal)
            if self.keeps:
                mixed, attention = mixed
            x = x + self.drop_path(mixed)
            x = x if self.pre_norm else self.norm1(x)
        mlp = self.drop_path(self.mlp(self.norm2(x) if self.pre_norm else x))
        x = x + mlp if self.pre_norm else self.norm2(x + mlp)
        return (x, attention) if self.keeps else x


def feature_info(dim: int, depth: int) -> list[dict[str, Any]]:
    """Where a network's features are, after each block, as timm's models say it."""
    return [{"module": f"blocks.{block}", "num_chs": dim, "reduction": 1} for block in range(depth)]


def initialise(module: nn.Module, std: float = 0.02) -> None:
    """As BERT and GPT-2 do: matrices and embeddings normal with a standard deviation of `std`, biases 0; and the matrix
    of factorised embeddings so that the vectors it makes are as large as the normalised ones that it takes in."""
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Embedding):
            nn.init.normal_(child.weight, std=std)
            if getattr(child, "bias", None) is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, Embeddings):
            nn.init.normal_(child.positions, std=std)
    for child in module.modules():
        if isinstance(child, Embeddings) and isinstance(child.projection, nn.Linear):
            nn.init.normal_(child.projection.weight, std=child.projection.in_features**-0.5)
